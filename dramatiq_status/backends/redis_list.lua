-- A page of the index that redis.lua keeps: message ids and records, newest first; or how many there are.
--
-- KEYS[1]: what the index's keys start with; itself the set of the names of its sets. A name is a state, a time to live
--   in milliseconds (of finished messages only), a queue and an actor as JSON, a line each; under the prefix and the
--   name lies the sorted set of the ids, by the moment in microseconds at which each came into its state.
-- ARGV[1..3]: the state, the queue and the actor to look for, '' for all.
-- ARGV[4]: how many messages to leave out. ARGV[5]: how many to return; 0 to count them.
-- ARGV[6]: the part of a message's key that comes before its id. ARGV[7]: '1' for whole records; '2' for none, and for
--   dropping nothing: on a cluster, what is not here may still be on the node that the slot comes from.
-- Returns the number, or for each message its moment, its id and its record (names and texts; empty if not asked for).
--
-- Messages that the store has forgotten before their time are dropped as they are met.

local call = redis.call
local registry = KEYS[1]
local wanted_state, wanted_queue, wanted_actor = ARGV[1], ARGV[2], ARGV[3]
local offset, limit = tonumber(ARGV[4]), tonumber(ARGV[5])
local before, whole, keep = ARGV[6], ARGV[7] == '1', ARGV[7] == '2'
local time = call('TIME')
local now = time[1] * 1000000 + time[2]

-- From how many candidates on it pays to search for the moments between which the page lies.
local MANY = 2000
-- How often a page is put together anew because messages on it were gone.
local PATIENCE = 20

local function text_of(moment)
  return string.format('%.0f', moment)
end

local sets, total = {}, 0
for _, name in ipairs(call('SMEMBERS', registry)) do
  local state, ttl, queue, actor = name:match('^(.)\n(%d*)\n([^\n]*)\n([^\n]*)$')
  if (wanted_state == '' or wanted_state == state)
    and (wanted_queue == '' or wanted_queue == queue)
    and (wanted_actor == '' or wanted_actor == actor)
  then
    local key = registry .. name
    -- A set that is on its way to another node, or there already, is passed over.
    if ttl ~= '' then redis.pcall('ZREMRANGEBYSCORE', key, '-inf', '(' .. text_of(now - ttl * 1000)) end
    local count = redis.pcall('ZCARD', key)
    if count == 0 then
      if not keep then call('SREM', registry, name) end
    elseif type(count) == 'number' then
      sets[#sets + 1] = {key = key, state = state, queue = queue, actor = actor}
      total = total + count
    end
  end
end

if limit == 0 then return total end
if offset >= total then return {} end

-- The earliest moment from which on there are at most `most` messages, and how many there are.
local function search(most)
  local low, high, newer = now, now + 1, 0
  for _, set in ipairs(sets) do
    local oldest = call('ZRANGE', set.key, 0, 0, 'WITHSCORES')[2]
    local newest = call('ZRANGE', set.key, -1, -1, 'WITHSCORES')[2]
    low, high = math.min(low, tonumber(oldest)), math.max(high, newest + 1)
  end
  while high - low > 1 do
    local middle, count = math.floor((low + high) / 2), 0
    for _, set in ipairs(sets) do
      count = count + call('ZCOUNT', set.key, text_of(middle), '+inf')
    end
    if count <= most then
      high, newer = middle, count
    else
      low = middle
    end
  end
  return high, newer
end

-- The candidates of the page, each a moment, an id and the set that it is in.
local function gather()
  local found = {}
  local function add(set, list)
    for i = 1, #list, 2 do
      found[#found + 1] = {tonumber(list[i + 1]), list[i], set}
    end
  end
  if #sets == 1 then
    add(sets[1], call('ZREVRANGE', sets[1].key, offset, offset + limit - 1, 'WITHSCORES'))
    return found
  end
  local skip, high, low = offset, '+inf', '-inf'
  if #sets * (offset + limit) > MANY and total > offset then
    local from, newer = search(offset)
    high, skip = '(' .. text_of(from), offset - newer
    if total > offset + limit then low = text_of(search(offset + limit) - 1) end
  end
  for _, set in ipairs(sets) do
    add(set, call('ZREVRANGEBYSCORE', set.key, high, low, 'WITHSCORES', 'LIMIT', 0, skip + limit))
  end
  table.sort(found, function(one, other)
    if one[1] ~= other[1] then return one[1] > other[1] end
    return one[2] > other[2]
  end)
  local page = {}
  for i = skip + 1, math.min(#found, skip + limit) do
    page[#page + 1] = found[i]
  end
  return page
end

-- The record of a candidate; nothing if it is no longer what the index says; empty if it is on another node.
local function fetch(candidate)
  local key, set = before .. candidate[2], candidate[3]
  local is = redis.pcall('HMGET', key, 's', 'Q', 'a')
  if is.err and is.err:find('non local key', 1, true) or keep and not is[1] then return {} end
  if is.err or is[1] ~= set.state or (is[2] or '') ~= set.queue or (is[3] or '') ~= set.actor then return nil end
  return whole and call('HGETALL', key) or {}
end

local page
for _ = 1, PATIENCE do
  page = {}
  local candidates = gather()
  for _, candidate in ipairs(candidates) do
    local record = fetch(candidate)
    if record then
      page[#page + 1] = {text_of(candidate[1]), candidate[2], record}
    elseif not keep then
      total = total - call('ZREM', candidate[3].key, candidate[2])
    end
  end
  if keep or #page == #candidates then break end
end
return page
