<?php
// Changes one item safely from many processes: read it with its token, change it, store it if no
// other process changed it meanwhile, otherwise try again. After a fail-over of the proxy an old
// token is refused even if the item is the same: the loop covers that too.
//
//   php cas-loop.php [host [port]]
[$host, $port] = [$argv[1] ?? '127.0.0.1', (int)($argv[2] ?? 12000)];

$cache = new Memcached();
$cache->addServer($host, $port);

function add_to_list(Memcached $cache, string $key, $entry, int $tries = 20): bool
{
    for ($try = 0; $try < $tries; $try++) {
        $found = $cache->get($key, null, Memcached::GET_EXTENDED);
        if ($found === false) {
            if ($cache->getResultCode() !== Memcached::RES_NOTFOUND) {
                return false; // SERVER_ERROR, or no connection to the proxy: the caller decides
            }
            $done = $cache->add($key, [$entry]);
        } else {
            // The token is opaque: pass it back as it came.
            $done = $cache->cas($found['cas'], $key, [...$found['value'], $entry]);
        }
        if ($done) {
            return true;
        }
        $code = $cache->getResultCode();
        $again = [Memcached::RES_DATA_EXISTS, Memcached::RES_NOTFOUND, Memcached::RES_NOTSTORED];
        if (!in_array($code, $again, true)) {
            return false;
        }
    }
    return false;
}

$cache->delete('example:list');
foreach (['a', 'b', 'c'] as $entry) {
    if (!add_to_list($cache, 'example:list', $entry)) {
        fwrite(STDERR, 'not stored: ' . $cache->getResultMessage() . "\n");
        exit(1);
    }
}
echo implode(' ', $cache->get('example:list')), "\n";
