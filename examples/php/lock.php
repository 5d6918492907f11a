<?php
// A lock by `add`: it succeeds for exactly one process, also while the proxy fails over or refills
// a server.
//
//   php lock.php [host [port]]
[$host, $port] = [$argv[1] ?? '127.0.0.1', (int)($argv[2] ?? 12000)];

$cache = new Memcached();
$cache->addServer($host, $port);
$owner = bin2hex(random_bytes(8));

// The expiry frees the lock if its owner dies. No expiry, no lock.
if (!$cache->add('example:lock', $owner, 30)) {
    echo $cache->getResultCode() === Memcached::RES_NOTSTORED ? "somebody else has it\n"
        : 'no answer that can be trusted: ' . $cache->getResultMessage() . "\n";
    exit(1);
}
echo "locked\n";

// ... the work ...

// Release the lock only if it is still ours: it may have expired. The cas joins check and change
// into one step; expiry -1 deletes the item at once.
$held = $cache->get('example:lock', null, Memcached::GET_EXTENDED);
$ours = $held !== false && $held['value'] === $owner;
if ($ours && $cache->cas($held['cas'], 'example:lock', '', -1)) {
    echo "unlocked\n";
} else {
    echo "it was not ours any more, or the token was refused: left to expire\n";
}
