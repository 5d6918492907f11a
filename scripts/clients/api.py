"""python-memcached, bmemcached (binary) and pylibmc (text and binary): what an application does with them."""

import sys
import traceback

import bmemcached
import memcache
import pylibmc

PORT = int(sys.argv[1])
AT = f"127.0.0.1:{PORT}"


def common(client, many=True):
    """Checks that every client has, by name."""
    checks = {}
    key = f"api:{type(client).__module__}:{id(client)}"

    def check(name, holds):
        checks[name] = holds

    def set_and_get():
        client.set(key, "value")
        return client.get(key) == "value"

    def large():
        client.set(key + ":large", "x" * 500_000)
        return client.get(key + ":large") == "x" * 500_000

    def add_replace_delete():
        client.delete(key)
        return bool(client.add(key, "a")) and not client.add(key, "b") and bool(client.replace(key, "c")) and \
            bool(client.delete(key)) and client.get(key) is None

    def counts():
        client.set(key + ":n", 5)
        return client.incr(key + ":n", 3) == 8 and client.decr(key + ":n", 2) == 6 and int(client.get(key + ":n")) == 6

    def of_many():
        pairs = {f"{key}:{i}": str(i) for i in range(500)}
        client.set_multi(pairs)
        return client.get_multi(list(pairs)) == pairs

    check("set and get", set_and_get)
    check("a large value", large)
    check("add, replace, delete", add_replace_delete)
    check("counters", counts)
    if many:
        check("500 keys at once", of_many)
    return checks


def python_memcached():
    client = memcache.Client([AT], cache_cas=True)
    checks = common(client)

    def cas():
        client.set("api:cas", "a")
        client.gets("api:cas")
        return bool(client.cas("api:cas", "b")) and client.get("api:cas") == "b"

    def very_many():
        keys = [f"{i:0>100}" for i in range(20_000)]
        client.set(keys[7], "seven")
        return client.get_multi(keys) == {keys[7]: "seven"}

    checks["cas"] = cas
    checks["20,000 keys"] = very_many
    checks["stats"] = lambda: "curr_items" in client.get_stats()[0][1]
    checks["slab stats"] = lambda: len(client.get_slab_stats()) == 1
    checks["append"] = lambda: bool(client.set("api:app", "a")) and bool(client.append("api:app", "b")) and \
        client.get("api:app") == "ab"
    return checks


def binary():
    client = bmemcached.Client((AT,))
    checks = common(client)

    def cas():
        client.set("api:bcas", "a")
        _, token = client.gets("api:bcas")
        return bool(client.cas("api:bcas", "b", token)) and not client.cas("api:bcas", "c", token)

    checks["cas"] = cas
    checks["stats"] = lambda: b"curr_items" in {k if isinstance(k, bytes) else k.encode() for k in client.stats()[AT]}
    checks["stats settings"] = lambda: len(client.stats("settings")[AT]) > 20
    checks["stats slabs"] = lambda: client.stats("slabs")[AT] is not None
    return checks


def pylib(binary):
    client = pylibmc.Client([AT], binary=binary, behaviors={"cas": True})
    checks = common(client)

    def cas():
        client.set("api:pcas", "a")
        _, token = client.gets("api:pcas")
        return bool(client.cas("api:pcas", "b", token)) and client.get("api:pcas") == "b"

    checks["cas"] = cas
    checks["touch"] = lambda: bool(client.set("api:t", "a")) and bool(client.touch("api:t", 100))
    checks["stats"] = lambda: "curr_items" in str(client.get_stats()[0][1])
    return checks


for name, client in [
    ("python-memcached", python_memcached),
    ("bmemcached", binary),
    ("pylibmc", lambda: pylib(False)),
    ("pylibmc binary", lambda: pylib(True)),
]:
    try:
        for check, holds in client().items():
            try:
                if holds():
                    print(f"ok {name}: {check}")
                else:
                    print(f"not {name}: {check}")
            except Exception:
                print(f"not {name}: {check}: {traceback.format_exc().splitlines()[-1]}")
    except Exception:
        print(f"not {name}: {traceback.format_exc().splitlines()[-1]}")
