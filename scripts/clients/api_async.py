"""aiomcache and emcache (asyncio), meta-memcache (meta): a line for each check that holds."""

import asyncio
import sys
import traceback

PORT = int(sys.argv[1])


async def say(name, holds):
    try:
        print(f"{'ok' if await holds else 'not'} {name}")
    except Exception:
        print(f"not {name}: {traceback.format_exc().splitlines()[-1]}")


async def aiomcache():
    import aiomcache

    client = aiomcache.Client("127.0.0.1", PORT)

    async def set_and_get():
        return await client.set(b"aio:a", b"v") and await client.get(b"aio:a") == b"v"

    async def add():
        await client.delete(b"aio:b")
        return await client.add(b"aio:b", b"v") and not await client.add(b"aio:b", b"w")

    async def counters():
        await client.set(b"aio:n", b"5")
        return await client.incr(b"aio:n", 3) == 8 and await client.decr(b"aio:n", 2) == 6

    async def cas():
        _, token = await client.gets(b"aio:a")
        return await client.cas(b"aio:a", b"w", token) and await client.get(b"aio:a") == b"w"

    async def several():
        return await client.multi_get(b"aio:a", b"aio:z") == (b"w", None)

    async def stats():
        return b"curr_items" in await client.stats() and b"maxbytes" in await client.stats(b"settings")

    for check in (set_and_get, add, counters, cas, several, stats):
        await say(f"aiomcache: {check.__name__}", check())
    await say("aiomcache: touch", client.touch(b"aio:a", 100))
    await say("aiomcache: version", client.version())
    await say("aiomcache: flush", flushed(client))
    await client.close()


async def flushed(client):
    await client.flush_all()
    return await client.get(b"aio:a") is None


async def emcache():
    import emcache

    client = await emcache.create_client([emcache.MemcachedHostAddress("127.0.0.1", PORT)], timeout=5)

    async def set_and_get():
        await client.set(b"em:a", b"v")
        return (await client.get(b"em:a")).value == b"v"

    async def counters():
        await client.set(b"em:n", b"5")
        return await client.increment(b"em:n", 3) == 8

    async def cas():
        token = (await client.gets(b"em:a")).cas
        await client.cas(b"em:a", b"w", token)
        return (await client.get(b"em:a")).value == b"w"

    async def several():
        return list(await client.get_many([b"em:a", b"em:n", b"em:z"])) == [b"em:a", b"em:n"]

    async def touch():
        await client.touch(b"em:a", 100)
        return (await client.gat(100, b"em:a")).value == b"w"

    for check in (set_and_get, counters, cas, several, touch):
        await say(f"emcache: {check.__name__}", check())
    await client.close()


async def meta():
    from meta_memcache import CacheClient, Key, ServerAddress, SetMode, StalePolicy, connection_pool_factory_builder

    client = CacheClient.cache_client_from_servers(
        servers=[ServerAddress("127.0.0.1", PORT)],
        connection_pool_factory_fn=connection_pool_factory_builder(recv_timeout=5),
    )
    a, n, z = Key("meta:a"), Key("meta:n"), Key("meta:z")
    blank = Key("a key with blanks, ü")

    async def set_and_get():
        return client.set(a, {"v": 1}, ttl=60) and client.get(a) == {"v": 1}

    async def base64_key():
        return client.set(blank, "v", ttl=60) and client.get(blank) == "v"

    async def add():
        client.delete(z)
        return client.set(z, 1, ttl=60, set_mode=SetMode.ADD) and not client.set(z, 2, ttl=60, set_mode=SetMode.ADD)

    async def cas():
        _, token = client.get_cas(a)
        return client.set(a, "w", ttl=60, cas_token=token) and not client.set(a, "x", ttl=60, cas_token=token)

    async def counters():
        client.delete(n)
        client.delta_initialize(n, 1, initial_value=5, initial_ttl=60)
        return client.delta_and_get(n, 2) == 7

    async def several():
        wanted = {Key(f"meta:{i}"): i for i in range(100)}
        for key, value in wanted.items():
            client.set(key, value, ttl=60)
        return client.multi_get(list(wanted)) == wanted

    async def touch():
        client.set(a, "w", ttl=60)
        return client.touch(a, 100) and client.get(a, touch_ttl=100) == "w"

    async def stale():
        client.set(a, "old", ttl=60)
        policy = StalePolicy(mark_stale_on_deletion_ttl=30)
        return client.delete(a, stale_policy=policy) and client.get(a) is None and client.get(a) == "old"

    for check in (set_and_get, base64_key, add, cas, counters, several, touch, stale):
        await say(f"meta-memcache: {check.__name__}", check())


async def main():
    for client in (aiomcache, emcache, meta):
        try:
            await client()
        except Exception:
            print(f"not {client.__name__}: {traceback.format_exc().splitlines()[-1]}")


asyncio.run(main())
