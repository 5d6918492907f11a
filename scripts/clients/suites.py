"""The suites. Each is given a port, and returns what passed, as a list of names."""

import os
import re
import shutil
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
TOOL = "/usr/share/memcached/scripts/memcached-tool"


def run(arguments, timeout=120, **more):
    """What it printed, or nothing where it hung."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, errors="replace", **more)
        return done.stdout + done.stderr
    except subprocess.TimeoutExpired as hung:
        return (hung.stdout or b"").decode(errors="replace") + "\nhung\n"


def capable(flag):
    def suite(port, _dir):
        said = run(["memccapable", "-h", "127.0.0.1", "-p", str(port), flag])
        return re.findall(r"^(?:ascii|binary) (.+?)\s+\[pass\]", said, re.M)

    return suite


def fill(port, keys=50):
    import memcache

    client = memcache.Client([f"127.0.0.1:{port}"])
    client.flush_all()
    for i in range(keys):
        client.set(f"tool:{i}", "x" * 100)
    client.disconnect_all()


def tool(port, _dir):
    fill(port)
    at, passed = f"127.0.0.1:{port}", []
    for what, wanted in [
        ("display", r"^\s*\d+\s+\d+B\s+\d+s\s+\d+\s+\d+"),
        ("stats", r"^\s*curr_items\s+\d+"),
        ("settings", r"^\s*maxbytes\s+\d+"),
        ("sizes", r"disabled|^\s*\d+\s+\d+"),
        ("dump", r"^add tool:49 0 \d+ 100"),
        ("keys", r"key=tool%3A49 "),
    ]:
        said = run(["perl", TOOL, at, what], timeout=30)
        if re.search(wanted, said, re.M) and "hung" not in said and "__resilver__" not in said:
            passed.append(what)
    return passed


def libmemcached(port, _dir):
    fill(port)
    at, passed = f"--servers=127.0.0.1:{port}", []
    for command, wanted in [
        (["memcdump", at], r"^tool:49$"),
        (["memcstat", at], r"cmd_get: \d+"),
        (["memcping", at], r"^$"),
        (["memcexist", at, "tool:1"], r"^$"),
        (["memccat", at, "tool:1"], r"^x{100}"),
        (["memctouch", at, "tool:1"], r"^$"),
        (["memcrm", at, "tool:1"], r"^$"),
    ]:
        said = run(command, timeout=30)
        if re.search(wanted, said, re.M) and "hung" not in said and "__resilver__" not in said:
            passed.append(command[0])
    return passed


def pymemcache(port, dir):
    tests = run([f"{dir}/bin/python", "-c", "import pymemcache.test as t; print(t.__path__[0])"]).strip()
    said = run(
        [f"{dir}/bin/pytest", "-q", "-rA", "-p", "no:cacheprovider", f"{tests}/test_integration.py",
         "--server", "127.0.0.1", "--port", str(port), "-k", "not tls"],
        cwd="/tmp",
    )
    return re.findall(r"^PASSED \S*(test_integration\.py::\S+)", said, re.M)


def api(name):
    """scripts/clients/NAME: prints a line for each check that holds."""

    def suite(port, dir):
        env = {**os.environ, "NODE_PATH": os.path.abspath(f"{dir}/node_modules")}
        runner = {".py": [f"{dir}/bin/python"], ".php": ["php"], ".js": ["node"]}[os.path.splitext(name)[1]]
        said = run([*runner, f"{HERE}/{name}", str(port)], env=env)
        return re.findall(r"^ok (.+)$", said, re.M)

    return suite


# Checks that differ for a reason: a part of the name, and the reason.
KNOWN = {
    "::test_misc[": "cache_memlimit is for one server: refused, as by a memcached that cannot adjust",
}

SUITES = {
    "memccapable text": capable("-a"),
    "memccapable binary": capable("-b"),
    "memcached-tool": tool,
    "libmemcached's tools": libmemcached,
    "pymemcache": pymemcache,
    "python clients": api("api.py"),
    "php": api("api.php"),
    "node clients": api("api.js"),
}

if not shutil.which("php"):
    del SUITES["php"]
if not shutil.which("node"):
    del SUITES["node clients"]
