"""Suites that are the clients' own tests, and memcached's: each check is one of their tests."""

import glob
import os
import re
import shutil
import socket
import tempfile

from sources import aimed, archive, php_memcached, unpacked
from suites import HERE, api, run

GOMEMCACHE = "/usr/share/gocode/src/github.com/bradfitz/gomemcache"
# The files of memcached's t/ that take a server which runs already and ask it for what a proxy has:
# no restart, no options of one server, no slab of one server, at most some seconds.
T_FILES = """binary-get bogus-commands cas expirations flags flush-all getandtouch getset incrdecr issue_104 issue_108
issue_14 issue_152 issue_163 issue_192 issue_29 issue_3 issue_41 issue_42 issue_61 issue_68 issue_70 item_size_max
line-lengths malicious-commands metaget multiversioning noreply quit shutdown stats-detail strtol-testing touch""".split()
# Those that take longer than any other that hangs in the end, where it starts a server of its own.
T_LONG = ("getset", "issue_41")


def flush(port):
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(b"flush_all\r\n")
        client.recv(100)


def tap(file, said):
    """The checks that hold of what a TAP test said."""
    return [f"{file} {found}".strip() for found in re.findall(r"^ok (\d+.*?)\s*$", said, re.M)]


def memcached_t(port, dir):
    folder = os.path.dirname(unpacked(dir, "memcached_*.orig.tar.*", "t"))
    debug = f"{folder}/memcached-debug"
    if not os.path.exists(debug):
        os.symlink(shutil.which("memcached"), debug)
    env, passed = {**os.environ, "T_MEMD_USE_DAEMON": f"127.0.0.1:{port}"}, []
    for name in T_FILES:
        flush(port)
        timeout = 60 if name in T_LONG else 10
        said = run(["perl", "-I", "t/lib", f"t/{name}.t"], timeout=timeout, cwd=folder, env=env)
        passed += [re.sub(r"\b\d{6,}\b|'\d+'|: \d+( \d+)?$", "", check) for check in tap(name, said)]
    return passed


def perl(pattern):
    def suite(port, dir):
        folder, passed = aimed(unpacked(dir, pattern, "t"), port), []
        for file in sorted(glob.glob(f"{folder}/*.t")):
            name = os.path.basename(file)
            if name in ("pod.t", "pod-coverage.t", "tidy.t", "changes.t"):
                continue
            said = run(["perl", "-I", folder, file], timeout=40, cwd=os.path.dirname(folder))
            passed += tap(name, said.replace(str(port), "PORT"))
        return passed

    return suite


def django(port, dir):
    folder = os.path.abspath(f"{unpacked(dir, 'django-5.2.1.tar.gz', 'tests')}")
    settings = tempfile.mkdtemp(prefix="clients-")
    backend = "django.core.cache.backends.memcached"
    with open(f"{settings}/clients_settings.py", "w") as file:
        file.write(f"""
DATABASES = {{name: {{"ENGINE": "django.db.backends.sqlite3"}} for name in ("default", "other")}}
SECRET_KEY = "clients"
USE_TZ = False
CACHES = {{
    "default": {{"BACKEND": "{backend}.PyMemcacheCache", "LOCATION": "127.0.0.1:{port}"}},
    "pylibmc": {{"BACKEND": "{backend}.PyLibMCCache", "LOCATION": "127.0.0.1:{port}"}},
}}
""")
    env = {**os.environ, "PYTHONPATH": settings}
    said = run(
        [f"{os.path.abspath(dir)}/bin/python", "runtests.py", "--settings", "clients_settings", "--parallel", "1",
         "-v", "2", "-k", "PyMemcacheCacheTests", "-k", "PyLibMCCacheTests", "cache"],
        cwd=folder, env=env, timeout=300,
    )
    return re.findall(r"^(test_\w+ \([\w.]+\)).*?\.\.\. ok$", re.sub(r"\n(?!test_)(?=[^\n]*\.\.\. )", " ", said), re.M)


def memcache(port, dir):
    folder = aimed(unpacked(dir, "memcache-0.14.0.tar.gz", "tests"), port)
    env = {**os.environ, "PYTHONPATH": os.path.abspath(f"{dir}/pypi-memcache")}
    pytest = [f"{os.path.abspath(dir)}/bin/pytest", "-q", "-rA", "-p", "no:cacheprovider"]
    said = run([*pytest, folder], cwd=folder, env=env)
    return re.findall(r"^PASSED (?:\S*/)?(\S+::\S+)", said, re.M)


# With another key an encoded value is no value, but once in some hundred times.
RANDOM = ("set_encoding_key.phpt",)


def phpt(port, dir):
    """php-memcached's own tests. They compare what a script prints with what is expected, in which
    `%d` and the like stand for anything (--EXPECTF--)."""
    folder, passed = aimed(php_memcached(dir), port), []
    for file in sorted(glob.glob(f"{folder}/*.phpt") + glob.glob(f"{folder}/experimental/**/*.phpt", recursive=True)):
        with open(file, errors="surrogateescape") as reading:
            parts = re.split(r"^--([A-Z_]+)--[ \t]*\r?\n", reading.read(), flags=re.M)[1:]
        parts = dict(zip(parts[::2], parts[1::2]))
        here = os.path.dirname(file)
        settings = [part for line in parts.get("INI", "").splitlines() if "=" in line for part in ("-d", line.strip())]

        def php(script):
            path = file[:-1]
            with open(path, "w", errors="surrogateescape") as writing:
                writing.write(script)
            return run(["php", *settings, path], timeout=30, cwd=here)

        if "FILE" not in parts or os.path.basename(file) in RANDOM:
            continue
        if "SKIPIF" in parts and "skip" in php(parts["SKIPIF"]).lower()[:200]:
            continue
        said = re.sub(r"\r\n", "\n", php(parts["FILE"])).strip()
        if "CLEAN" in parts:
            php(parts["CLEAN"])
        if "EXPECT" in parts:
            holds = said == parts["EXPECT"].replace("\r\n", "\n").strip()
        else:
            wanted = parts.get("EXPECTREGEX", "")
            if "EXPECTF" in parts:
                wanted = re.escape(parts["EXPECTF"].replace("\r\n", "\n").strip())
                for short, long in [("%e", "/"), ("%s", "[^\\n]+"), ("%S", "[^\\n]*"), ("%a", ".+"), ("%A", ".*"),
                                    ("%w", "\\s*"), ("%i", "[+-]?\\d+"), ("%d", "\\d+"), ("%x", "[0-9a-fA-F]+"),
                                    ("%f", "[+-]?\\.?\\d+\\.?\\d*(?:[Ee][+-]?\\d+)?"), ("%c", ".")]:
                    wanted = wanted.replace(short, long)
            holds = re.fullmatch(wanted.strip(), said, re.S) is not None
        if holds:
            passed.append(os.path.relpath(file, folder))
    return passed


def symfony(port, dir):
    """Symfony's tests of its MemcachedAdapter, with Debian's packages of what they extend."""
    folder = unpacked(dir, "symfony_*.orig.tar.*", "src/Symfony/Component/Cache/Tests")
    bootstrap = tempfile.mkdtemp(prefix="clients-") + "/bootstrap.php"
    with open(bootstrap, "w") as file:
        file.write(f"""<?php
require '/usr/share/php/Symfony/Component/Cache/autoload.php';
require '/usr/share/php/Cache/IntegrationTests/autoload.php';
spl_autoload_register(function ($class) {{
    $prefix = 'Symfony\\\\Component\\\\Cache\\\\Tests\\\\';
    if (0 === strpos($class, $prefix)) {{
        require '{folder}/' . str_replace('\\\\', '/', substr($class, strlen($prefix))) . '.php';
    }}
}});
""")
    env = {**os.environ, "MEMCACHED_HOST": f"127.0.0.1:{port}"}
    said = run(
        ["phpunit", "--no-configuration", "--do-not-cache-result", "--bootstrap", bootstrap, "--testdox",
         f"{folder}/Adapter/MemcachedAdapterTest.php"],
        env=env, timeout=200,
    )
    return re.findall(r"^ ✔ (.+?)(?: \[[\d.]+ ms\])?$", said, re.M)


def gomemcache(port, _dir):
    gopath = tempfile.mkdtemp(prefix="clients-")
    to = f"{gopath}/src/github.com/bradfitz"
    os.makedirs(to)
    shutil.move(aimed(GOMEMCACHE, port), f"{to}/gomemcache")
    env = {**os.environ, "GOPATH": gopath, "GO111MODULE": "off", "GOFLAGS": "-count=1"}
    said = run(["go", "test", "-v", "./..."], cwd=f"{to}/gomemcache", env=env, timeout=300)
    return [name for name in re.findall(r"^\s*--- PASS: (\S+)", said, re.M)]


def java(port, dir):
    jar = "/usr/share/java/spymemcached.jar"
    said = run(["java", "-cp", jar, f"{HERE}/Api.java", str(port)], timeout=120)
    return re.findall(r"^ok (.+)$", said, re.M)


def there(*paths):
    return lambda dir: next((f"{path} is not here" for path in paths if not os.path.exists(path)), None)


def of(pattern, *commands):
    """Needs an archive of sources, and commands."""

    def lacking(dir):
        if archive(dir, pattern) is None:
            return f"no sources {pattern}"
        return next((f"no {command}" for command in commands if not shutil.which(command)), None)

    return lacking


# By name: the suite, and what says why it must be skipped here.
UPSTREAM = {
    "memcached's t/": (memcached_t, of("memcached_*.orig.tar.*", "perl")),
    "Cache::Memcached": (perl("libcache-memcached-perl_*.orig.tar.*"), of("libcache-memcached-perl_*.orig.tar.*", "perl")),
    "Cache::Memcached::Fast": (
        perl("libcache-memcached-fast-perl_*.orig.tar.*"), of("libcache-memcached-fast-perl_*.orig.tar.*", "perl")),
    "Django": (django, of("django-5.2.1.tar.gz")),
    "PyPI's memcache": (memcache, of("memcache-0.14.0.tar.gz")),
    "Symfony": (symfony, of("symfony_*.orig.tar.*", "phpunit", "php")),
    "Dalli 5": (api("api.rb", "sources/dalli/lib"), lambda dir: there(f"{dir}/sources/dalli/lib")(dir) or (
        None if shutil.which("ruby") else "no ruby")),
    "php-memcached's .phpt": (phpt, lambda dir: "no sources of php-memcached" if php_memcached(dir) is None else (
        None if shutil.which("php") else "no php")),
    "gomemcache": (gomemcache, lambda dir: there(GOMEMCACHE)(dir) or (None if shutil.which("go") else "no go")),
    "spymemcached": (java, there("/usr/share/java/spymemcached.jar", "/usr/bin/java")),
}
