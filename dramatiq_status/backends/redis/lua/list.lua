-- Returns a page of a list (message ids and records, newest first) from the update script's index, or a count.
--
-- KEYS[1]: the prefix of the index's keys.  The key with this name is the set of the names of the index's sets.  A name
--   is a state, a time to live in milliseconds (of finished messages only), a queue and an actor as JSON, a line each.
--   The key of a set is the prefix and the name. A set contains ids, sorted by the timestamp in microseconds at which
--   each message came into its state.
-- ARGV[1..3]: the state, the queue and the actor to look for, '' for all.
-- ARGV[4]: maximum number of messages to return; 0 to count them.
-- ARGV[5]: the position of the last message of the page before, '' for the first page.  A position is the timestamp in
--   microseconds at which a message came into its state.  The message may have expired or been deleted since.  For a
--   count: number of unfinished messages among which to look for expired ones.
-- ARGV[6]: the id of the last message of the page before.
-- ARGV[7]: the part of a message's key that comes before its id.
-- ARGV[8]: '1' for whole records; '0' for none, on a node of a cluster; '2' for none, on a node of a cluster to which
--   the slot is moving.
-- Returns the number of messages for a count.  For a page, returns 1 if another call finds more messages for it, else 0;
--   and for each message its position, its id and its record (names and texts; empty without whole records).  Returns
--   the error TRYAGAIN while the slot moves, because some keys of the slot are on another node.
--
-- The script removes from the index each message that it finds without a record. While the script runs, the server
-- executes nothing else.  So the work is bounded, and grows only with the number of sets.

local call = redis.call
local registry = KEYS[1]
local wanted_state, wanted_queue, wanted_actor = ARGV[1], ARGV[2], ARGV[3]
local limit, after, after_id = tonumber(ARGV[4]), ARGV[5], ARGV[6]
local position = tonumber(after)
local before, whole, arriving = ARGV[7], ARGV[8] == '1', ARGV[8] == '2'

-- Return whether the slot is moving to another node. While it moves, this node refuses the names of keys that it does
-- not have. No key has the name that this function passes.
local function is_leaving()
  local found = redis.pcall('EXISTS', registry .. '?')
  if type(found) == 'number' then return false end
  if not found.err:find('non local key', 1, true) then error(found.err, 0) end
  return true
end

if arriving or not whole and is_leaving() then
  return redis.error_reply(
    'TRYAGAIN A slot with statuses is moving to another node of the cluster: nothing can be listed or counted until it is there.'
  )
end

local time = call('TIME')
local now = time[1] * 1000000 + time[2]

-- Maximum number of messages that one call looks up for a page.
local LOOKED_UP = 5000
-- Maximum number of arguments of a command.
local PIECE = 1000

local function text_of(timestamp)
  return string.format('%.0f', timestamp)
end

-- Return whether a score is a timestamp, as the index has them: another program may have stored an infinite one.
local function is_timestamp(score)
  return score >= 0 and score < 9007199254740992 and score % 1 == 0
end

-- Treat a foreign value under a key as a missing one; raise every other error.
local function skip_foreign(reply)
  if not reply.err:find('WRONGTYPE', 1, true) then error(reply.err, 0) end
end

-- The names of the index's sets; none where their key has a foreign value.
local names = redis.pcall('SMEMBERS', registry)
if names.err then
  skip_foreign(names)
  call('UNLINK', registry)
  names = {}
end

local sets = {}
for _, name in ipairs(names) do
  local state, ttl, queue, actor = name:match('^([0-3])\n(%d*)\n([^\n]*)\n([^\n]*)$')
  if not state or (state > '1') ~= (ttl ~= '') or #ttl > 15 then
    -- Another program has added this name.
    call('SREM', registry, name)
  elseif (wanted_state == '' or wanted_state == state)
    and (wanted_queue == '' or wanted_queue == queue)
    and (wanted_actor == '' or wanted_actor == actor)
  then
    sets[#sets + 1] = {
      key = registry .. name, name = name, state = state, queue = queue, actor = actor,
      -- Older messages have expired.
      from = ttl ~= '' and now - ttl * 1000,
      -- Fields that are set below.  With all fields from the beginning, Lua makes the table in half the time.
      count = 0, at = 0, size = 0, list = false, next = 0, id = false, timestamp = 0, stale = false,
      ended = false,
    }
  end
end

-- Remove a set that has no messages, or only expired ones.
local function forget(set)
  if set.from then redis.pcall('UNLINK', set.key) end
  call('SREM', registry, set.name)
end

-- Count the messages of each set, remove the sets without any, and return the sum.
local function measure()
  local found, sum = {}, 0
  for _, set in ipairs(sets) do
    local count
    if set.from then
      count = redis.pcall('ZCOUNT', set.key, text_of(set.from), '+inf')
    else
      count = redis.pcall('ZCARD', set.key)
    end
    if count == 0 then
      forget(set)
    elseif type(count) ~= 'number' then
      skip_foreign(count)
    else
      found[#found + 1] = set
      set.count = count
      sum = sum + count
    end
  end
  sets = found
  return sum
end

-- Look up the messages of a set from index `first` to index `last`, and remove those that have no record. The oldest
-- message has the index 0. Return the number of removed messages.
local function check(set, first, last)
  local ids, dropped = call('ZRANGE', set.key, first, last), 0
  for begin = 1, #ids, PIECE do
    local keys = {}
    for i = begin, math.min(#ids, begin + PIECE - 1) do
      keys[#keys + 1] = before .. ids[i]
    end
    if call('EXISTS', unpack(keys)) < #keys then
      local gone = {}
      for i, key in ipairs(keys) do
        if call('EXISTS', key) == 0 then gone[#gone + 1] = ids[begin + i - 1] end
      end
      dropped = dropped + call('ZREM', set.key, unpack(gone))
    end
  end
  return dropped
end

-- Remove unfinished messages that have expired, and return their number. No set shows which messages have expired,
-- because a heartbeat renews a record's expiry. Where a set has more messages than its share of the check, the function
-- checks some of the oldest and as many others, and then more of the oldest as long as all of these have expired.
local function clean()
  local live, sum, dropped, checked = {}, 0, 0, tonumber(after)
  local left = checked
  for _, set in ipairs(sets) do
    if not set.from then
      live[#live + 1] = set
      sum = sum + set.count
    end
  end
  local share = sum <= checked and checked or math.max(2, math.floor(checked / 5 / #live))
  for n = 1, #live do
    if left <= 0 then break end
    local set = live[(time[2] + n) % #live + 1]
    if set.count <= share then
      left = left - set.count
      dropped = dropped + check(set, 0, set.count - 1)
    else
      local half = math.floor(share / 2)
      local place = half + time[2] % (set.count - half)
      dropped = dropped + check(set, place, place + half - 1)
      left = left - half
      repeat
        local gone = check(set, 0, half - 1)
        dropped = dropped + gone
        left = left - half
      until gone < half or left <= 0
    end
  end
  return dropped
end

if limit == 0 then
  local sum = measure()
  return sum - clean()
end

-- Return whether an id comes before another id with the same timestamp.  Ids are ordered by their bytes, descending, as
-- ZREVRANGE orders them. Lua would order them by the server's locale.
local function precedes(one, other)
  for place = 1, math.min(#one, #other) do
    local byte, other_byte = one:byte(place, place), other:byte(place, place)
    if byte ~= other_byte then return byte > other_byte end
  end
  return #one > #other
end

-- Return the number of messages of a set that are newer than the cursor's position.
local function count_newer(set)
  local count = redis.pcall('ZCOUNT', set.key, '(' .. after, '+inf')
  if type(count) == 'number' then return count end
  skip_foreign(count)
  return 0
end

-- Return the index, in a set, of the first message behind the cursor.  The messages from index `from` on have the
-- cursor's timestamp.  The search is a bisection: among eight messages, it reads three ids.
local function pass_ties(set, from)
  local to = call('ZCOUNT', set.key, after, '+inf')
  while from < to do
    local middle = math.floor((from + to) / 2)
    if precedes(after_id, call('ZREVRANGE', set.key, middle, middle)[1]) then to = middle else from = middle + 1 end
  end
  return from
end

-- Number of messages that the first read of a set returns: one more than the set's share of the page, because most sets
-- would otherwise need a second read.
local size = math.min(PIECE, math.ceil(limit / math.max(1, #sets)) + 1)

-- Go on to the next message of a set, and set its `timestamp` and `id`. Return whether there is one.
local function advance(set)
  set.next = set.next + 2
  if not (set.list and set.list[set.next]) then
    if set.ended then return false end
    if set.at or set.list then
      set.at = set.at or count_newer(set) + size
      set.list = redis.pcall('ZREVRANGE', set.key, set.at, set.at + set.size - 1, 'WITHSCORES')
      set.at = set.at + set.size
    else
      -- The first read behind a cursor.  To count the newer messages and to read behind them takes longer.
      set.list = redis.pcall('ZREVRANGEBYSCORE', set.key, after, '-inf', 'WITHSCORES', 'LIMIT', 0, size)
    end
    if set.list.err then skip_foreign(set.list) end
    set.ended = #set.list < 2 * set.size
    set.size, set.next = math.min(PIECE, 2 * set.size), 1
  end
  set.id, set.timestamp = set.list[set.next], tonumber(set.list[set.next + 1])
  return set.id and not (set.from and set.timestamp < set.from)
end

-- The sets that have a message left, as a heap. The set with the newest message is on top.
local heap = {}

local function is_newer(one, other)
  if one.timestamp ~= other.timestamp then return one.timestamp > other.timestamp end
  return precedes(one.id, other.id)
end

local function sink(place)
  local set, last = heap[place], #heap
  while true do
    local child = 2 * place
    if child > last then break end
    if child < last and is_newer(heap[child + 1], heap[child]) then child = child + 1 end
    if not is_newer(heap[child], set) then break end
    heap[place] = heap[child]
    place = child
  end
  heap[place] = set
end

for _, set in ipairs(sets) do
  set.size = size
  if after ~= '' then set.at = false end
  local found = advance(set)
  if found and set.timestamp == position and not precedes(after_id, set.id) then
    set.at, set.list, set.ended = pass_ties(set, count_newer(set) + 1), false, false
    found = advance(set)
  end
  if found then
    heap[#heap + 1] = set
  elseif after == '' and not set.list.err then
    forget(set)
  end
end
for place = math.floor(#heap / 2), 1, -1 do
  sink(place)
end

-- Return the record of a message; nil if its state, queue or actor is no longer that of the set.
local function fetch(set)
  if not is_timestamp(set.timestamp) then return nil end
  local key = before .. set.id
  local is = redis.pcall('HMGET', key, 's', 'Q', 'a')
  if is.err then skip_foreign(is) end
  if is.err or is[1] ~= set.state or (is[2] or '') ~= set.queue or (is[3] or '') ~= set.actor then return nil end
  return whole and call('HGETALL', key) or {}
end

local page, more, looked_up, met = {}, 0, 0, {}
while #page < limit and #heap > 0 do
  local set = heap[1]
  if looked_up == LOOKED_UP then
    more = 1
    break
  end
  looked_up = looked_up + 1
  local record = fetch(set)
  if record then
    page[#page + 1] = {text_of(set.timestamp), set.id, record}
  else
    if not set.stale then
      set.stale = {}
      met[#met + 1] = set
    end
    set.stale[#set.stale + 1] = set.id
  end
  if not advance(set) then
    heap[1] = heap[#heap]
    heap[#heap] = nil
  end
  if #heap > 0 then sink(1) end
end
for _, set in ipairs(met) do
  for first = 1, #set.stale, PIECE do
    call('ZREM', set.key, unpack(set.stale, first, math.min(#set.stale, first + PIECE - 1)))
  end
end
return {more, page}
