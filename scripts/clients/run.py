"""Runs every suite against a memcached, through the proxy, and so while primaries die and come back."""

import argparse
import os
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from sources import fetch  # noqa: E402
from suites import ALL_OF_IT, KNOWN, KNOWN_IN_FAULTS, SUITES, free_port  # noqa: E402
from upstream import UPSTREAM  # noqa: E402

DEADLINE = 30


class Stuck(Exception):
    """A part of the set-up did not come to be: the suite in hand fails, and says so."""


def wait_for(what, holds):
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > DEADLINE:
            raise Stuck(f"waited {DEADLINE} s in vain: {what}")
        time.sleep(0.02)


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Memcached:
    def __init__(self):
        self.port = free_port()
        self.start()

    def start(self):
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        self.process = subprocess.Popen(["memcached", "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", *user])
        wait_for("memcached listens", lambda: listens(self.port))

    def kill(self):
        self.process.kill()
        self.process.wait()


class Cluster:
    """Two primaries and a backup behind a proxy."""

    def __init__(self, binary):
        self.primaries, self.backup = [Memcached(), Memcached()], Memcached()
        # (After theirs, or one of them might be given the same.)
        self.binary, self.port = binary, free_port()
        servers = [part for node in self.primaries for part in ("-s", f"127.0.0.1:{node.port}")]
        self.process = subprocess.Popen(
            [binary, "-p", str(self.port), *servers, "-b", f"127.0.0.1:{self.backup.port}", "--log-file", os.devnull]
        )
        wait_for("the proxy listens", lambda: listens(self.port))
        self.wait_mirrored()

    def wait_mirrored(self):
        ask = [self.binary, "wait", "--mirrored", "--proxy", f"127.0.0.1:{self.port}", "--timeout", f"{DEADLINE}s"]
        if subprocess.run(ask, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
            raise Stuck("the servers are not mirrored")

    def torment(self, over):
        """A primary dies and comes back, again and again."""
        rounds = 0
        while not over.wait(0.7):
            node = self.primaries[rounds % 2]
            node.kill()
            over.wait(0.7)
            node.start()
            self.wait_mirrored()
            rounds += 1
        return rounds

    def stop(self):
        self.process.terminate()
        self.process.wait()
        for node in [*self.primaries, self.backup]:
            node.kill()


def with_faults(cluster, suite, dir):
    """Until two primaries have died and come back; what passed each time."""
    over, rounds, stuck = threading.Event(), [], []

    def torment():
        try:
            rounds.append(cluster.torment(over))
        except Stuck as error:
            stuck.append(error)

    thread = threading.Thread(target=torment)
    thread.start()
    passed, begun = None, time.monotonic()
    try:
        while passed is None or time.monotonic() - begun < 4:
            now = suite(cluster.port, dir)
            passed = now if passed is None else [name for name in passed if name in now]
    finally:
        over.set()
        thread.join()
    if stuck:
        raise stuck[0]
    return passed, rounds[0]


def results(arguments, suite):
    """What passes beside memcached, through the proxy and in faults, and how many primaries died."""
    stock = Memcached()
    try:
        cluster = Cluster(arguments.bin)
        try:
            expected = suite(stock.port, arguments.dir)
            passed = suite(cluster.port, arguments.dir)
            return expected, passed, *with_faults(cluster, suite, arguments.dir)
        finally:
            cluster.stop()
    finally:
        stock.kill()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--dir", required=True)
    arguments.add_argument("--bin", required=True)
    arguments.add_argument("suites", nargs="*")
    arguments = arguments.parse_args()
    if not os.path.exists(arguments.bin):
        sys.exit(f"{arguments.bin} is not there: cargo build, or BIN=…")
    unknown = set(arguments.suites) - {*SUITES, *UPSTREAM}
    if unknown:
        sys.exit(f"no suite {', '.join(sorted(unknown))}; there are: {', '.join({**SUITES, **UPSTREAM})}")
    fetch(arguments.dir)
    worse, run, skipped, part = False, 0, [], []
    print(f"{'suite':24} {'memcached':>9} {'proxy':>6} {'faults':>7}  missing")
    for name, (suite, lacking) in {**SUITES, **UPSTREAM}.items():
        if arguments.suites and name not in arguments.suites:
            continue
        if why := lacking(arguments.dir):
            print(f"{name:24} skipped: {why}", flush=True)
            skipped.append(f"{name} ({why})")
            continue
        run += 1
        try:
            expected, passed, through, rounds = results(arguments, suite)
        except Stuck as error:
            print(f"{name:24} stuck: {error}", flush=True)
            worse = True
            continue
        known = {check: why for check in expected for part, why in KNOWN.items() if part in check}
        missing = [check for check in expected if check not in passed and check not in known]
        lost = {check: KNOWN_IN_FAULTS.get((name, check)) for check in expected if check in passed and check not in through}
        for check, why in lost.items():
            if why:
                print(f"{name}: {check} differs in a fault: {why}")
        broken = [f"{check} (in a fault)" for check, why in lost.items() if why is None]
        for why in sorted({why for check, why in known.items() if check not in passed}):
            print(f"{name}: {sum(known[check] == why for check in known)} differ: {why}")
        worse |= bool(missing or broken or not expected)
        # (A part of a suite that is not installed here would be missed beside memcached too.)
        if len(expected) < ALL_OF_IT[name]:
            part.append(f"{name} ({len(expected)} of {ALL_OF_IT[name]} checks pass beside memcached)")
        passing = len(expected) - len(missing) - sum(check in known and check not in passed for check in expected)
        counts = f"{len(expected):9} {passing:6} {passing - len(lost):7}"
        print(f"{name:24} {counts}  {', '.join(missing + broken)} [{rounds} deaths]", flush=True)
    print(f"{run} suites were run")
    for said, names in [("in part", part), ("not at all, for what is not here", skipped)]:
        if names:
            print(f"{said}: {'; '.join(names)}")
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
