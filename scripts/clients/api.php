<?php
// PHP's two clients, text and binary; sessions with their lock; getMulti of 50,000 keys.
ini_set('memory_limit', '512M');
ini_set('session.use_cookies', '0');
ini_set('session.cache_limiter', '');
$port = (int) $argv[1];
ob_start();

function check(string $name, callable $holds): void
{
    try {
        $done = $holds();
    } catch (\Throwable $error) {
        $done = false;
    }
    fwrite(STDOUT, ($done ? 'ok ' : 'not ') . $name . "\n");
}

foreach (['text' => false, 'binary' => true] as $dialect => $binary) {
    $client = new Memcached();
    $client->setOption(Memcached::OPT_BINARY_PROTOCOL, $binary);
    $client->addServer('127.0.0.1', $port);
    $key = "php:$dialect";
    check("Memcached $dialect: set and get", fn () => $client->set($key, ['a' => 1]) && $client->get($key) === ['a' => 1]);
    check("Memcached $dialect: counters", fn () => $client->set("$key:n", 5) && $client->increment("$key:n", 2) === 7);
    check("Memcached $dialect: cas", function () use ($client, $key) {
        $client->set("$key:cas", 'a');
        $read = $client->get("$key:cas", null, Memcached::GET_EXTENDED);
        return $client->cas($read['cas'], "$key:cas", 'b') && !$client->cas($read['cas'], "$key:cas", 'c');
    });
    check("Memcached $dialect: several", function () use ($client, $key) {
        $client->setMulti(["$key:1" => 'a', "$key:2" => 'b']);
        return $client->getMulti(["$key:1", "$key:2", "$key:3"]) === ["$key:1" => 'a', "$key:2" => 'b'];
    });
    check("Memcached $dialect: 50,000 keys", function () use ($client, $key) {
        $keys = array_map(fn ($i) => sprintf('%s:%0100d', $key, $i), range(0, 49_999));
        $client->set($keys[40_000], 'there');
        return $client->getMulti($keys) === [$keys[40_000] => 'there'];
    });
    check("Memcached $dialect: stats", fn () => count(current($client->getStats())) > 10);
    check("Memcached $dialect: sessions", function () use ($port, $binary) {
        ini_set('session.save_handler', 'memcached');
        ini_set('session.save_path', "127.0.0.1:$port");
        ini_set('memcached.sess_binary_protocol', $binary ? '1' : '0');
        ini_set('memcached.sess_locking', '1');
        session_id('php' . ($binary ? 'b' : 't') . getmypid());
        for ($visit = 1; $visit <= 3; $visit++) {
            if (!session_start() || ($_SESSION['visits'] ?? 0) !== $visit - 1) {
                return false;
            }
            $_SESSION['visits'] = $visit;
            session_write_close();
            $_SESSION = [];
        }
        return true;
    });
    check("Memcached $dialect: a session's lock", function () use ($port, $binary) {
        ini_set('memcached.sess_lock_wait_min', '10');
        ini_set('memcached.sess_lock_wait_max', '100');
        ini_set('memcached.sess_lock_retries', '200');
        session_id('phpl' . ($binary ? 'b' : 't') . getmypid());
        session_start();
        $_SESSION['by'] = 'the first';
        $inis = ['session.save_handler' => 'memcached', 'session.save_path' => "127.0.0.1:$port",
            'session.use_cookies' => '0', 'session.cache_limiter' => '', 'memcached.sess_locking' => '1',
            'memcached.sess_lock_wait_min' => '10', 'memcached.sess_lock_wait_max' => '100',
            'memcached.sess_lock_retries' => '200', 'memcached.sess_binary_protocol' => $binary ? '1' : '0'];
        $command = [PHP_BINARY];
        foreach ($inis as $name => $value) {
            array_push($command, '-d', "$name=$value");
        }
        $id = session_id();
        array_push($command, '-r', "session_id('$id'); echo 'waits '; session_start(); echo \$_SESSION['by'];");
        $other = proc_open($command, [1 => ['pipe', 'w']], $pipes);
        $waits = fread($pipes[1], 6);
        // Whoever does not wait for the lock reads what was there before.
        usleep(300_000);
        session_write_close();
        $_SESSION = [];
        $said = stream_get_contents($pipes[1]);
        proc_close($other);
        return $waits . $said === 'waits the first';
    });
}
if (class_exists('Memcache')) {
    $old = new Memcache();
    $old->connect('127.0.0.1', $port);
    check('Memcache: set and get', fn () => $old->set('php:old', 'v', 0, 60) && $old->get('php:old') === 'v');
    check('Memcache: counters', fn () => $old->set('php:on', 5) && $old->increment('php:on', 2) === 7);
    check('Memcache: getExtendedStats', fn () => count(current($old->getExtendedStats('slabs'))) > 0);
    foreach (['ascii', 'binary'] as $dialect) {
        check("Memcache $dialect: sessions", function () use ($port, $dialect) {
            ini_set('session.save_handler', 'memcache');
            ini_set('session.save_path', "tcp://127.0.0.1:$port");
            ini_set('memcache.session_redundancy', '1');
            ini_set('memcache.protocol', $dialect);
            session_id("old$dialect" . getmypid());
            for ($visit = 1; $visit <= 3; $visit++) {
                if (!session_start() || ($_SESSION['visits'] ?? 0) !== $visit - 1) {
                    return false;
                }
                $_SESSION['visits'] = $visit;
                session_write_close();
                $_SESSION = [];
            }
            return true;
        });
    }
    check('Memcache: version', fn () => preg_match('/^[\d.]+$/', $old->getVersion()) === 1);
}
