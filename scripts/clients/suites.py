"""The suites. Each is given a port, and returns what passed, as a list of names."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
TOOL = "/usr/share/memcached/scripts/memcached-tool"
MUNIN = "/usr/share/munin/plugins/memcached_"


def run(arguments, timeout=120, **more):
    """What it printed, or nothing where it hung."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, errors="replace", **more)
        return done.stdout + done.stderr
    except subprocess.TimeoutExpired as hung:
        return (hung.stdout or b"").decode(errors="replace") + "\nhung\n"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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
        ("dump", r"^add tool:49 \d+ \d+ 100"),
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
        (["memcdump", at], r"^tool:\d+$"),
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


def nginx(port, _dir):
    """Pages that nginx serves from the cache."""
    import memcache

    at, web = tempfile.mkdtemp(prefix="clients-"), free_port()
    with open(f"{at}/nginx.conf", "w") as file:
        file.write(f"""daemon off; master_process off; pid {at}/pid; error_log {at}/error;
events {{ }}
http {{
    access_log off;
    server {{
        listen 127.0.0.1:{web};
        location / {{ set $memcached_key page:$uri; memcached_pass 127.0.0.1:{port}; default_type text/html; }}
    }}
}}
""")
    server = subprocess.Popen(["nginx", "-p", at, "-c", f"{at}/nginx.conf"], stderr=subprocess.DEVNULL)

    def page(name):
        for tries in range(100):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{web}/{name}", timeout=20) as answer:
                    return answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code
            except urllib.error.URLError:
                time.sleep(0.05)
        return None

    client, passed = memcache.Client([f"127.0.0.1:{port}"]), []
    try:
        client.set("page:/small", "<p>small</p>")
        client.set("page:/large", "x" * 700_000)
        client.delete("page:/none")
        if page("small") == "<p>small</p>":
            passed.append("a page")
        if page("large") == "x" * 700_000:
            passed.append("a large page")
        if page("none") == 404:
            passed.append("no page")
        if all(page("small") == "<p>small</p>" for _ in range(200)):
            passed.append("200 pages")
    finally:
        server.kill()
        server.wait()
        client.disconnect_all()
    return passed


def exporter_binary(dir):
    """No registry at hand has it: one that was built by hand stands in the folder of sources."""
    built = f"{dir}/sources/memcached_exporter/memcached_exporter"
    return shutil.which("prometheus-memcached-exporter") or (os.path.exists(built) and os.path.abspath(built))


def exporter(port, dir):
    """memcached_exporter: its series by name and labels, and that the server is up."""
    fill(port)
    web = free_port()
    server = subprocess.Popen(
        [exporter_binary(dir), f"--memcached.address=127.0.0.1:{port}", f"--web.listen-address=127.0.0.1:{web}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for tries in range(200):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{web}/metrics", timeout=20) as answer:
                    said = answer.read().decode()
                break
            except OSError:
                time.sleep(0.05)
        else:
            return []
    finally:
        server.kill()
        server.wait()
    if "memcached_up 1" not in said:
        return []
    return sorted(set(re.findall(r"^(memcached_\w+(?:\{.*\})?) ", said, re.M)))


def munin(port, _dir):
    """Munin's plugin, of which each graph is a name: the fields that have a value."""
    fill(port)
    at, passed = tempfile.mkdtemp(prefix="clients-"), []
    for graph in ("rates", "bytes", "counters"):
        os.symlink(MUNIN, f"{at}/memcached_{graph}")
        env = {**os.environ, "host": "127.0.0.1", "port": str(port)}
        said = run(["perl", f"{at}/memcached_{graph}"], timeout=30, env=env)
        passed += [f"{graph} {field}" for field in re.findall(r"^(\w+)\.value -?[\d.]+$", said, re.M)]
    shutil.rmtree(at)
    return passed


def collectd(port, _dir):
    """collectd's plugin: what it writes down within some of its intervals."""
    fill(port)
    at = tempfile.mkdtemp(prefix="clients-")
    with open(f"{at}/conf", "w") as file:
        file.write(f"""BaseDir "{at}"
PIDFile "{at}/pid"
Hostname "here"
Interval 0.5
LoadPlugin memcached
LoadPlugin csv
<Plugin memcached>
    <Instance "one">
        Host "127.0.0.1"
        Port "{port}"
    </Instance>
</Plugin>
<Plugin csv>
    DataDir "{at}/csv"
</Plugin>
""")
    daemon = subprocess.Popen(["collectd", "-f", "-C", f"{at}/conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(3)
    daemon.terminate()
    daemon.wait()
    day = re.compile(r"-\d{4}-\d{2}-\d{2}$")
    found = {day.sub("", name) for _, _, names in os.walk(f"{at}/csv") for name in names}
    shutil.rmtree(at)
    return sorted(found)


def api(name, lib=None):
    """scripts/clients/NAME: prints a line for each check that holds. `lib`: a folder of Ruby's."""

    def suite(port, dir):
        env = {**os.environ, "NODE_PATH": os.path.abspath(f"{dir}/node_modules")}
        if lib is not None:
            env["RUBYLIB"] = os.path.abspath(f"{dir}/{lib}")
        runner = {".py": [f"{dir}/bin/python"], ".php": ["php"], ".js": ["node"], ".rb": ["ruby"]}[os.path.splitext(name)[1]]
        said = run([*runner, f"{HERE}/{name}", str(port)], env=env)
        return re.findall(r"^ok (.+)$", said, re.M)

    return suite


# How many checks of a suite pass beside memcached 1.6.18 where all of its parts are installed: as in
# docs/reference.md. (Of memcached's t/ most are of one file, which takes long.)
ALL_OF_IT = {
    "memccapable text": 27, "memccapable binary": 27, "memcached-tool": 6, "libmemcached's tools": 6,
    "memcached's t/": 40_116, "pymemcache": 100, "python clients": 35, "asyncio and meta": 22,
    "PyPI's memcache": 34, "Django": 116, "Cache::Memcached": 72, "Cache::Memcached::Fast": 132, "php": 22,
    "php-memcached's .phpt": 97, "Symfony": 59, "node clients": 13, "Dalli": 16, "Dalli 5": 16,
    "spymemcached": 25, "gomemcache": 1, "nginx": 4, "memcached_exporter": 91, "munin": 11, "collectd": 23,
}

# Checks that differ for a reason: a part of the name, and the reason.
KNOWN = {
    "meta-memcache: cas": "cas tokens are 64 bits wide; its extension holds 32 and leaves larger ones out",
    "malicious-commands ": "HTTP is told so before it is closed; memcached closes without a word",
    "metaget 123 ": "the token 1 is not the proxy's: another leader's token never wins, not even as an older one",
    "::test_misc[": "cache_memlimit is for one server: refused, as by a memcached that cannot adjust",
}

# Checks of a suite that may fail while a server dies, and the reason.
KNOWN_IN_FAULTS = {
    ("memcached-tool", "keys"): "a server that dies amid a list of keys: SERVER_ERROR in the place of END",
    ("memcached-tool", "dump"): "a server that dies amid a list of keys: SERVER_ERROR in the place of END",
    **{("memcached's t/", f"stats-detail {check}"): "a server that was restarted counts no prefixes before the next stats detail on"
       for check in ("4 - details after set", "7 - details after get with hit", "10 - details after get without hit",
                     "13 - details after delete")},
    **{("memcached's t/", f"expirations {check}"): "a client's date is compared with the clock of a server that has run for minutes: 1.6.18's is late by then"
       for check in ("5 - already expired", "31 - now expired")},
    ("memcached's t/", "issue_14 21 - Memory grows.."): "slabs are those of the servers that lead",
    ("memcached's t/", "issue_29 2 - Used one"): "slabs are those of the servers that lead",
    ("memcached's t/", "issue_29 4 - Used two"): "slabs are those of the servers that lead",
    ("memcached's t/", "issue_42 11 - Check allocated size"): "slabs are those of the servers that lead",
    ("Django", "test_forever_timeout (cache.tests.PyMemcacheCacheTests.test_forever_timeout)"): "an item of seconds may end early in the first second of a server (docs/guarantees.md)",
    ("Django", "test_forever_timeout (cache.tests.PyLibMCCacheTests.test_forever_timeout)"): "an item of seconds may end early in the first second of a server (docs/guarantees.md)",
    ("Django", "test_touch (cache.tests.PyMemcacheCacheTests.test_touch)"): "an item of seconds may end early in the first second of a server (docs/guarantees.md)",
    ("Django", "test_touch (cache.tests.PyLibMCCacheTests.test_touch)"): "an item of seconds may end early in the first second of a server (docs/guarantees.md)",
    ("gomemcache", "TestLocalhost"): "it begins with a flush_all whose answer it does not await",
    ("libmemcached's tools", "memcdump"): "a server that dies amid a list of keys: SERVER_ERROR in the place of END",
}


def needs(*commands):
    """What is missing of these commands, or nothing."""
    return lambda _dir: next((f"no {command}" for command in commands if not shutil.which(command)), None)


# By name: the suite, and what says why it must be skipped here.
SUITES = {
    "memccapable text": (capable("-a"), needs("memccapable")),
    "memccapable binary": (capable("-b"), needs("memccapable")),
    "memcached-tool": (tool, lambda _dir: None if os.path.exists(TOOL) else f"no {TOOL}"),
    "libmemcached's tools": (libmemcached, needs("memcdump")),
    "pymemcache": (pymemcache, needs()),
    "python clients": (api("api.py"), needs()),
    "asyncio and meta": (api("api_async.py"), needs()),
    "php": (api("api.php"), needs("php")),
    "node clients": (api("api.js"), needs("node")),
    "Dalli": (api("api.rb"), needs("ruby")),
    "nginx": (nginx, needs("nginx")),
    "memcached_exporter": (exporter, lambda dir: None if exporter_binary(dir) else "no memcached_exporter"),
    "munin": (munin, lambda _dir: None if os.path.exists(MUNIN) else f"no {MUNIN}"),
    "collectd": (collectd, needs("collectd")),
}
