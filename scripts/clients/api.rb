# Dalli (binary in version 3, meta from 5 on): a line for each check that holds.
require 'dalli'
client = Dalli::Client.new("127.0.0.1:#{ARGV[0]}", socket_timeout: 5)
check = lambda do |name, &holds|
  done = begin holds.call rescue false end
  puts "#{done ? 'ok' : 'not'} #{name}"
end
check.call('set and get') { client.set('rb:a', { 'b' => 1 }) && client.get('rb:a') == { 'b' => 1 } }
check.call('add') { client.delete('rb:b'); client.add('rb:b', 1) && !client.add('rb:b', 2) }
check.call('replace') { client.replace('rb:b', 3) && client.get('rb:b') == 3 }
check.call('cas') { client.cas('rb:a') { |old| old.merge('c' => 2) } && client.get('rb:a') == { 'b' => 1, 'c' => 2 } }
check.call('counters') { client.delete('rb:n'); client.incr('rb:n', 1, 60, 5) == 5 && client.incr('rb:n', 2) == 7 }
check.call('several') { client.set('rb:x', 1); client.set('rb:y', 2); client.get_multi('rb:x', 'rb:y', 'rb:z') == { 'rb:x' => 1, 'rb:y' => 2 } }
check.call('multi') { client.multi { 50.times { |i| client.set("rb:#{i}", i) } }; client.get('rb:49') == 49 }
check.call('append') { client.set('rb:s', 'a', 60, raw: true); client.append('rb:s', 'b'); client.get('rb:s', raw: true) == 'ab' }
check.call('touch') { client.touch('rb:s', 100) }
check.call('gat') { client.gat('rb:s', 100) }
check.call('a large value') { client.set('rb:l', 'x' * 500_000); client.get('rb:l') == 'x' * 500_000 }
check.call('fetch') { client.delete('rb:f'); client.fetch('rb:f') { 7 } == 7 && client.get('rb:f') == 7 }
check.call('stats') { client.stats.values[0]['curr_items'] }
check.call('stats settings') { client.stats(:settings).values[0]['maxbytes'] }
check.call('version') { client.version.values[0] =~ /\A[\d.]+\z/ }
check.call('flush') { client.flush; client.get('rb:a').nil? }
