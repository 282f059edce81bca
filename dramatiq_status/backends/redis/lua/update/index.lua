-- The index: sorted sets of message ids, one for each state, time to live (of finished messages), queue and actor.
-- A message's score, its position, is the time in microseconds at which it came into the state. So expired messages
-- are the oldest of a set of finished messages.
-- Each command of a script takes about a microsecond. The script therefore renews a set's expiry and limits its size
-- only from time to time.

-- Position of the last message that came into a state in this call.
local position
-- Times to live, rounded up, by the exact times to live.
local rounded = {}
-- Whether the present message could not be added to the index.
local unlisted = false

-- Add an entry to a key of the index, and return the command's reply. A foreign value under the key is replaced.
local function add(command, key, ...)
  local added = redis.pcall(command, key, ...)
  if type(added) == 'table' and added.err:find('WRONGTYPE', 1, true) then
    call('DEL', key)
    added = redis.pcall(command, key, ...)
  end
  return added
end

-- Renew the expiry of a set and of the set of all names, and add the name to the latter.
-- life: time until the new expiry, in milliseconds.
local function keep(set, name, life)
  local prefix = ARGV[#ARGV]
  call('PEXPIRE', set, life)
  local added = add('SADD', prefix, name)
  if type(added) == 'table' then
    unlisted = true
    return
  end
  if call('PTTL', prefix) < life then call('PEXPIRE', prefix, life) end
  if added == 1 then
    -- When a new name is added, the script checks two random names, and removes a name whose set no longer exists.
    -- Lists remove such names too, but some applications never list.
    for _, other in ipairs(call('SRANDMEMBER', prefix, 2)) do
      if redis.pcall('EXISTS', prefix .. other) == 0 then call('SREM', prefix, other) end
    end
  end
end

-- Add a message to the set of its state.
--   lives: the time to live in the name of a set of finished messages, '' for other sets; nil to round up `ttl` for it;
--   ttl: the time to live of its record, in milliseconds; since: its position, nil for the present time.
local function index(id, state, lives, queue, actor, ttl, since)
  local prefix = ARGV[#ARGV]
  if not since then
    if position then
      position = position + 1
    else
      position = ARGV[#ARGV - 3]
      if position == '' then
        local time = call('TIME')
        position = time[1] * 1000000 + time[2]
      end
    end
    since = position
  end
  if not lives then
    lives = rounded[ttl]
    if not lives then
      -- Two significant digits: 86399999 becomes 87000000.  Otherwise each different time to live would have a set of its
      -- own.
      lives = ttl .. ''
      if not lives:find('^%d%d?0*$') then
        local unit = 10 ^ (#lives - 2)
        lives = string.format('%.0f', math.ceil(ttl / unit) * unit)
      end
      rounded[ttl] = lives
    end
  end
  local name = state .. '\n' .. lives .. '\n' .. (queue or '') .. '\n' .. (actor or '')
  local set = prefix .. name
  if type(add('ZADD', set, since, id)) == 'table' then
    unlisted = true
    return
  end
  if lives ~= '' then ttl = lives + 0 end
  -- A set must outlive its messages. A later call removes ids without a record.
  local left = call('PTTL', set)
  if left < ttl or left < 2 * ttl - 60000 then keep(set, name, 2 * ttl) end
  local size = ARGV[#ARGV - 2] + 0
  -- A large set is trimmed once in 13 times, so it may exceed its maximum by some messages.
  if size < 1000 or since % 13 == 0 then
    if lives ~= '' then call('ZREMRANGEBYSCORE', set, '-inf', since - lives * 1000) end
    local count = call('ZCARD', set)
    if count > size then call('ZREMRANGEBYRANK', set, 0, count - size - 1) end
  end
end

-- Define how messages leave and change sets. A call whose updates all take shortcuts does not need these functions.
local function define_moves()
  -- Return the sets that may contain a message, each with the time to live in its name.
  local function sets_of(old)
    local prefix = ARGV[#ARGV]
    local queue, actor = old.queue or '', old.actor or ''
    if not old.finished then return {{prefix .. old.state .. '\n\n' .. queue .. '\n' .. actor, ''}} end
    -- The record of a finished message does not have the time to live that is in the name of the message's set, so all
    -- names are compared. Few messages leave a final state.
    local found = {}
    for _, name in ipairs(redis.pcall('SMEMBERS', prefix)) do
      local state, ttl, its_queue, its_actor = name:match('^(.)\n(%d*)\n([^\n]*)\n([^\n]*)$')
      if state == old.state and #ttl < 16 and its_queue == queue and its_actor == actor then
        found[#found + 1] = {prefix .. name, ttl}
      end
    end
    return found
  end

  -- Remove a message from the index.
  local function unindex(id, old)
    for _, set in ipairs(sets_of(old)) do
      redis.pcall('ZREM', set[1], id)
    end
  end

  -- Move a message from the set of its old record to the set of its new state.
  local function move(key, old, new, state, ttl)
    if ARGV[#ARGV] == '' then return end
    local id = key:sub(ARGV[#ARGV - 1] + 1)
    if old.state and (old.finished or old.state ~= state or old.queue ~= new.queue or old.actor ~= new.actor) then
      unindex(id, old)
    end
    index(id, state, not (state > WORKING) and '' or nil, new.queue, new.actor, ttl)
  end

  -- Move a message whose queue or actor has changed, and not its state. It keeps its position.
  local function rename(key, old, new)
    if ARGV[#ARGV] == '' or old.queue == new.queue and old.actor == new.actor then return end
    local id = key:sub(ARGV[#ARGV - 1] + 1)
    for _, set in ipairs(sets_of(old)) do
      local since = redis.pcall('ZSCORE', set[1], id)
      if type(since) == 'table' then
        unlisted = true
      elseif since then
        -- Another program may have stored an infinite score, with which the whole set would be trimmed.
        if math.abs(since) >= EXACT then since = nil end
        redis.pcall('ZREM', set[1], id)
        index(id, old.state, set[2], new.queue, new.actor, math.max(LIVE_TTL, call('PTTL', key)), since)
      end
    end
  end

  return {unindex = unindex, move = move, rename = rename}
end
