#!/usr/bin/env python3
"""Uses the proxy through a plain socket, to show the answers that a client must handle.

    client.py [host [port]]
"""
import socket
import sys


class Refused(Exception):
    """SERVER_ERROR or CLIENT_ERROR, with the proxy's words."""


class Client:
    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=5)
        self.input = self.socket.makefile("rb")

    def ask(self, line, data=None):
        self.socket.sendall(line + b"\r\n" + (b"" if data is None else data + b"\r\n"))
        answer = self.input.readline()
        if not answer.endswith(b"\r\n"):
            raise ConnectionError("the proxy closed the connection")
        answer = answer[:-2]
        if answer.split(b" ")[0] in (b"SERVER_ERROR", b"CLIENT_ERROR", b"ERROR"):
            raise Refused(answer.decode())
        return answer

    def gets(self, key):
        """Value and token, or None."""
        answer = self.ask(b"gets " + key)
        if answer == b"END":
            return None
        _, _, _, length, token = answer.split(b" ")
        value = self.input.read(int(length) + 2)[:-2]
        assert self.input.readline() == b"END\r\n"
        return value, token

    def stats(self, line):
        """The STAT lines of `stats …` or `resync status`, as a dict."""
        found, answer = {}, self.ask(line)
        while answer != b"END":
            _, name, value = answer.decode().split(" ", 2)
            found[name] = value
            answer = self.input.readline()[:-2]
        return found


def main():
    host, port = (sys.argv[1:] + ["127.0.0.1", "12000"][len(sys.argv) - 1:])[:2]
    client = Client(host, int(port))

    print("set:", client.ask(b"set example:greeting 0 60 5", b"hello").decode())
    value, token = client.gets(b"example:greeting")
    print("gets:", value.decode(), "token", token.decode())
    print("cas:", client.ask(b"cas example:greeting 0 60 3 " + token, b"bye").decode())
    again = client.ask(b"cas example:greeting 0 60 3 " + token, b"bad")
    print("cas with the old token:", again.decode())
    try:
        client.ask(b"delete __resilver__:session")
    except Refused as refusal:
        print("a reserved key:", refusal)

    status = client.stats(b"resync status")
    print("every item has two copies:", "yes" if status["mirrored"] == "1" else "no")
    for name, state in status.items():
        if name.endswith(":state"):
            print(" ", name.removesuffix(":state"), state)


if __name__ == "__main__":
    main()
