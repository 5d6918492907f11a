// memjs (binary) and memcached (text): a line for each check that holds.
const port = process.argv[2];
const say = (name, holds) => console.log(`${holds ? 'ok' : 'not'} ${name}`);
const checks = [];

function memjs() {
  const client = require('memjs').Client.create(`127.0.0.1:${port}`, { retries: 1, timeout: 5 });
  const check = (name, run) => checks.push(() => run().then((holds) => say(`memjs: ${name}`, holds)).catch(() => say(`memjs: ${name}`, false)));
  check('set and get', async () => { await client.set('js:a', 'v', {}); return String((await client.get('js:a')).value) === 'v'; });
  check('add', async () => { await client.delete('js:b'); return (await client.add('js:b', 'v', {})) && !(await client.add('js:b', 'w', {})); });
  check('counter', async () => { await client.delete('js:n'); await client.increment('js:n', 2, { initial: 5 }); return (await client.increment('js:n', 2, {})).value === 7; });
  check('stats', () => new Promise((done) => client.stats((error, _server, stats) => done(!error && stats !== undefined))));
  checks.push(async () => client.quit());
}

function memcached() {
  const Memcached = require('memcached');
  const client = new Memcached(`127.0.0.1:${port}`, { timeout: 5000 });
  const call = (name, ...args) => new Promise((done) => client[name](...args, (error, answer) => done(error ? undefined : answer)));
  const check = (name, run) => checks.push(() => run().then((holds) => say(`memcached: ${name}`, holds)).catch(() => say(`memcached: ${name}`, false)));
  check('set and get', async () => (await call('set', 'js:c', 'v', 60)) && (await call('get', 'js:c')) === 'v');
  check('several', async () => { await call('set', 'js:d', 'w', 60); return (await call('getMulti', ['js:c', 'js:d']))['js:d'] === 'w'; });
  check('cas', async () => { const read = await call('gets', 'js:c'); return call('cas', 'js:c', 'x', read.cas, 60); });
  for (const part of ['stats', 'settings', 'slabs', 'items']) check(part, async () => (await call(part))[0] !== undefined);
  check('version', async () => /^\d+\.\d+\.\d+$/.test((await call('version'))[0].version));
  check('cachedump', async () => { const items = (await call('items'))[0]; return dumped(Object.keys(items).filter((key) => key !== 'server')); });
  // An item is shown there once it has been in memory for a moment.
  const dumped = async (ids) => {
    for (let tries = 0; tries < 20; tries++) {
      for (const id of ids) if ((await call('cachedump', `127.0.0.1:${port}`, Number(id), 0)) !== undefined) return true;
      await new Promise((done) => setTimeout(done, 150));
    }
    return false;
  };
  checks.push(async () => client.end());
}

(async () => {
  for (const load of [memjs, memcached]) try { load(); } catch (error) { console.log(`not ${error.message.split('\n')[0]}`); }
  for (const run of checks) await run();
  process.exit(0);
})();
