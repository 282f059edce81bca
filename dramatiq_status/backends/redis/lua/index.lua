-- Notes that a message is in a state: what `index` and `keep` in update.lua do, for one key of the index on a cluster.
-- It has one key, so that Redis knows where that is while its slot moves; update.lua does not say which it will need.
--
-- KEYS[1]: the set, or what all keys of the index start with: the set of the names of its sets.
-- ARGV[1]: the message's id, or the name. ARGV[2]: the moment in microseconds, '' for a name. ARGV[3]: how long any of
-- the set's messages lives, in milliseconds. ARGV[4]: how many messages it keeps. ARGV[5]: 'NX' to leave the moment of
-- a message that is there already as it is, 'CH' to set it.

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
