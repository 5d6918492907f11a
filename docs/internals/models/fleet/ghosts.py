"""The former active proxy P, cut off with a write under way to a server S, and healed: what tells Q, who took over, that nothing
of P's can be executed any more?

P's connection is gone on its own side; its reset was lost in the cut, so S still has it. `proof`: what Q counts as P's end.
  word   P has said, by the register, that it has closed everything
  quiet  the same, and Q has waited for a while (a step of time) since
  list   S itself does not list the connection any more
`redial`: a process on P's host connects once more from the port of that connection, which nobody there has: S answers by its state
of the old one, P's kernel resets that. Without, `list` never comes. `fresh`: a connection from the same port begins at another
sequence number, so that what is under way of the old one is no part of it.
"""
import sys, os
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import walk, show
DIALS = 2
# p: live | closed (its socket) ; s: old | none | new (S's connection from that port) ; net: what is under way to S ; back: to P's host
names = "cut p s net back word time gone late dials cuts".split()


def run(proof="list", redial=True, fresh=True):
    start = (False, "live", "old", ("w",), (), False, 0, False, False, 0, 0)

    def moves(state):
        d = dict(zip(names, state))
        out = []

        def emit(name, **k):
            out.append((name, tuple({**d, **k}[n] for n in names)))
        net, back = d["net"], d["back"]
        if not d["cut"] and d["cuts"] < 2:
            emit("the network is cut", cut=True, cuts=d["cuts"] + 1)
        if d["cut"]:
            emit("it is whole again", cut=False)
        if d["p"] == "live":
            # P is fenced, or its kernel gives the connection up.
            emit("P's socket is closed, its reset is lost" if d["cut"] else "P's socket is closed", p="closed",
                 net=net if d["cut"] else net + ("rst",))
        if d["p"] == "closed" and not d["cut"] and not d["word"]:
            emit("P says that it has closed everything", word=True)
        if d["word"] and d["time"] < 1:
            emit("a while goes by", time=1)
        if redial and not d["cut"] and d["p"] == "closed" and d["dials"] < DIALS:
            emit("a process on P's host connects from that port", net=net + ("syn",), dials=d["dials"] + 1)
        # The network delivers in any order, and may hold a packet for as long as it likes; it loses resets.
        for i, packet in enumerate(net):
            rest = net[:i] + net[i + 1:]
            if d["cut"]:
                continue
            if packet == "w":
                executed = d["s"] == "old" or d["s"] == "new" and not fresh
                emit("S executes what P has sent" if executed else "S refuses what P has sent", net=rest,
                     late=d["late"] or executed and d["gone"])
            if packet in ("rst", "reset"):
                emit("S is told of a reset", net=rest, s="none" if d["s"] == "old" else d["s"])
            if packet in ("rst", "reset") and d["dials"] < DIALS:
                # (The last dial's comes through.)
                emit("the reset is lost", net=rest)
            if packet == "syn":
                if d["s"] == "old":
                    emit("S answers by the state of the old connection", net=rest, back=back + ("ack",))
                else:
                    emit("S accepts a new connection", net=rest, s="new")
        if "ack" in back and not d["cut"]:
            i = back.index("ack")
            reset = ("reset",) if d["p"] == "closed" else ()
            emit("P's host resets what it does not know", back=back[:i] + back[i + 1:], net=net + reset)
        if d["s"] == "new":
            emit("the new connection is closed at once", s="none")
        proven = {"word": d["word"], "quiet": d["word"] and d["time"] == 1, "list": d["s"] == "none"}[proof]
        if proven and not d["gone"]:
            emit("Q: P is gone; what it fills or moves from now on a late write may undo", gone=True)
        return out

    def bad(state, _):
        d = dict(zip(names, state))
        if d["late"]:
            return "a write of P's is executed after P has counted as gone"
        if d["p"] == "closed" and not d["gone"] and not moves(state):
            return "all is healed, and P is awaited for ever"
        if d["p"] == "live" and d["s"] == "none":
            return "a connection was closed that a process has"
        return None
    return walk(start, moves, bad, 100_000)


show("S lists the connection no more, which was reset from its port", run())
show("P's word", run("word"))
show("P's word, and a while", run("quiet"))
show("the list, and nobody connects from its port", run(redial=False))
show("a new connection takes what is under way for its own", run(fresh=False))
