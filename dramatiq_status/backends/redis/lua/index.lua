-- Adds a message to one set of the index, or a name to the set of names.  It does for one key what `index` and `keep` in
-- update/index.lua do. While a slot of a cluster moves, Redis locates the key of a script only if the script has one
-- key, and the update script cannot announce the keys that it needs.
--
-- KEYS[1]: the set; or, for a name, the prefix of the index's keys, which is the key of the set of names.
-- ARGV[1]: the message's id; or the name.
-- ARGV[2]: the message's position, the time in microseconds at which it came into its state; '' for a name.
-- ARGV[3]: the longest time to live of the set's messages, in milliseconds.
-- ARGV[4]: the maximum number of messages of the set.
-- ARGV[5]: 'NX' to keep the position of a message that the set has already, 'CH' to replace it.

local call = redis.call
local key, ttl = KEYS[1], ARGV[3] + 0
if ARGV[2] == '' then
  call('SADD', key, ARGV[1])
else
  call('ZADD', key, ARGV[5], ARGV[2], ARGV[1])
  call('ZREMRANGEBYRANK', key, 0, -ARGV[4] - 1)
end
if call('PTTL', key) < 2 * ttl then call('PEXPIRE', key, 2 * ttl) end
return 1
