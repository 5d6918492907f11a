<?php
// A short tour with PHP's two clients: php smoke.php <host> <port>
[, $host, $port] = $argv;
function same($what, $got, $want) {
    if ($got !== $want) {
        fwrite(STDERR, "$what: got " . var_export($got, true) . ", want " . var_export($want, true) . "\n");
        exit(1);
    }
}
if (class_exists('Memcached')) {
    $m = new Memcached();
    $m->setOption(Memcached::OPT_BINARY_PROTOCOL, false);
    $m->addServer($host, (int)$port);
    same('set', $m->set('php:a', ['x' => 1, 'y' => "\r\n"]), true);
    same('get', $m->get('php:a'), ['x' => 1, 'y' => "\r\n"]);
    same('setMulti', $m->setMulti(['php:m1' => 'one', 'php:m2' => 2, 'php:m3' => 3.5, 'php:m4' => true]), true);
    same('getMulti', $m->getMulti(['php:m4', 'php:none', 'php:m1', 'php:m3', 'php:m2'], Memcached::GET_PRESERVE_ORDER),
        ['php:m4' => true, 'php:none' => null, 'php:m1' => 'one', 'php:m3' => 3.5, 'php:m2' => 2]);
    same('add', $m->add('php:a', 1), false);
    same('set n', $m->set('php:n', 41), true);
    same('increment', $m->increment('php:n'), 42);
    same('decrement', $m->decrement('php:n', 2), 40);
    $m->setOption(Memcached::OPT_COMPRESSION, false);
    same('set s', $m->set('php:s', 'mid'), true);
    same('append', $m->append('php:s', 'dle'), true);
    same('prepend', $m->prepend('php:s', 'a '), true);
    same('appended', $m->get('php:s'), 'a middle');
    $got = $m->get('php:s', null, Memcached::GET_EXTENDED);
    same('cas', $m->cas($got['cas'], 'php:s', 'swapped'), true);
    same('old cas', $m->cas($got['cas'], 'php:s', 'again'), false);
    same('old cas code', $m->getResultCode(), Memcached::RES_DATA_EXISTS);
    same('touch', $m->touch('php:s', 100), true);
    same('big', $m->set('php:big', str_repeat('random-ish ', 50000)), true);
    same('big back', $m->get('php:big'), str_repeat('random-ish ', 50000));
    same('delete', $m->delete('php:s'), true);
    same('deleted', $m->get('php:s'), false);
    same('deleteMulti', $m->deleteMulti(['php:m1', 'php:m2']), ['php:m1' => true, 'php:m2' => true]);
    same('version', count($m->getVersion()), 1);
    same('stats', count($m->getStats()), 1);
    echo "Memcached ok\n";
}
if (class_exists('Memcache')) {
    $m = new Memcache();
    same('connect', $m->connect($host, (int)$port), true);
    same('set', $m->set('php:o', (object)['q' => 1], MEMCACHE_COMPRESSED, 100), true);
    same('get', $m->get('php:o')->q, 1);
    same('add', $m->add('php:o', 1), false);
    same('replace', $m->replace('php:o', 5), true);
    same('increment', $m->increment('php:o', 3), 8);
    same('get many', $m->get(['php:none', 'php:o']), ['php:o' => 8]);
    same('delete', $m->delete('php:o'), true);
    same('flush', $m->flush(), true);
    echo "Memcache ok\n";
}
