<?php
// PHP's sessions as they are by default, in memcached: php sessions.php <host:port>
ini_set('session.save_handler', 'memcached');
ini_set('session.save_path', $argv[1]);
function same($what, $got, $want) {
    if ($got !== $want) {
        fwrite(STDERR, "$what: got " . var_export($got, true) . ", want " . var_export($want, true) . "\n");
        exit(1);
    }
}
for ($i = 0; $i < 10; $i++) {
    $id = "session$i";
    session_id($id);
    same('start', session_start(), true);
    $_SESSION['n'] = $i;
    $_SESSION['text'] = str_repeat("a b\r\n", 1000 * $i);
    same('close', session_write_close(), true);
    session_id($id);
    same('start again', session_start(), true);
    same('read', $_SESSION['n'] ?? null, $i);
    same('regenerate', session_regenerate_id(true), true);
    same('destroy', session_destroy(), true);
    session_id($id);
    same('start anew', session_start(), true);
    same('gone', isset($_SESSION['n']), false);
    session_write_close();
}
$m = new Memcached();
$m->setOption(Memcached::OPT_BINARY_PROTOCOL, true);
$m->setOption(Memcached::OPT_COMPRESSION, false);
[$host, $port] = explode(':', $argv[1]);
$m->addServer($host, (int)$port);
same('set', $m->set('k', ['x' => 1], 60), true);
same('get', $m->get('k'), ['x' => 1]);
$cas = $m->get('k', null, Memcached::GET_EXTENDED)['cas'];
same('cas', $m->cas($cas, 'k', 'new'), true);
same('old cas', $m->cas($cas, 'k', 'newer'), false);
same('old cas says', $m->getResultCode(), Memcached::RES_DATA_EXISTS);
same('first', $m->increment('count', 1, 10, 60), 10);
same('next', $m->increment('count', 5), 15);
same('below', $m->decrement('count', 20), 0);
same('append', $m->set('text', 'b') && $m->append('text', 'c') && $m->prepend('text', 'a'), true);
same('joined', $m->get('text'), 'abc');
same('touch', $m->touch('text', 100), true);
$many = [];
for ($i = 0; $i < 1000; $i++) {
    $many["many$i"] = "value $i";
}
same('setMulti', $m->setMulti($many), true);
same('getMulti', $m->getMulti(array_keys($many)), $many);
same('deleteMulti', $m->deleteMulti(['many1', 'none']), ['many1' => true, 'none' => Memcached::RES_NOTFOUND]);
same('stats', is_array($m->getStats()), true);
same('flush', $m->flush(), true);
same('flushed', $m->get('k'), false);
echo "sessions and binary Memcached: all right\n";
