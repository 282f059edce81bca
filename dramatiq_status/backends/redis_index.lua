-- Notes that a message is in a state: what `index` in redis.lua does, for one set of the index on a cluster. It has one
-- key, so that Redis knows where that is while its slot moves; redis.lua does not say which ones it will need.
--
-- KEYS[1]: the set. ARGV[1]: the message's id. ARGV[2]: the moment in microseconds. ARGV[3]: how long the set lives, in
-- milliseconds, '' for as long as it does and ARGV[4] at least. ARGV[5]: how many messages it keeps.

local call = redis.call
local set, ttl = KEYS[1], ARGV[4] + 0
call('ZADD', set, ARGV[2], ARGV[1])
if ARGV[3] ~= '' then
  call('PEXPIRE', set, ARGV[3])
elseif call('PTTL', set) < ttl then
  call('PEXPIRE', set, 2 * ttl)
end
call('ZREMRANGEBYRANK', set, 0, -ARGV[5] - 1)
return 1
