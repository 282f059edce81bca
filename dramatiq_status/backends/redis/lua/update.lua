-- What an update does to a record, inside Redis: the mirror of `apply` in ../../../update.py.
--
-- KEYS[i]: the hash of the i-th update's message.
-- ARGV[1]: the present moment in epoch milliseconds, or '' for the server's own clock.
-- ARGV then holds for each update its kind, what the kind needs (below), the number of fields, and as many pairs of
-- stored name and JSON text. If any of them is of another kind than 2, 3 and 4, what is said of the index follows
-- (see list.lua): the present moment in microseconds, '' for the server's own clock; how many messages a set
-- keeps; how long the part of a key is that comes before a message's id; what the index's keys start with, '' for none.
--   0 enqueue: root, number
--   1 run with a transition: root, number, run ('0': none), place, start ('1'), create ('1'), state ('': none),
--     attempts, increment, ttl
--   2 outside without a state: increment
--   3 heartbeat: run
--   4 run without a transition: run, place, increment
--   5 outside with a state: state, increment, ttl
--   6 delete
--   7 changes of an update of kind 1 (also without a transition) or 5 (also without a state: ''), which follows:
--     number of fields to delete, their stored names, number of fields to count on, pairs of stored name and number
-- Returns the outcome of each update: 1 applied, 2 aside, 3 duplicate, 4 refused, 5 missing, 7 applied except for
-- counts on what is no number.
--
-- On a cluster, all keys share a slot. While that moves to another node, keys of the index may be there already;
-- the index is then left as it is, and what the outcome of such an update is is told as 10 more.
--
-- Every change of a version is published on the channel that is named like the key; 0 for a delete.
-- Numbers are compared as numbers and tokens as texts; nothing is decoded that was not asked for.

local call = redis.call
-- Users of Redis who may not publish have statuses nevertheless.
local publish = redis.pcall

-- Whether something that is not ours lies under a key. Every other error is one of this call, too: a record that cannot
-- be read is not a missing one.
local function is_foreign(reply)
  if not reply.err then return false end
  if not reply.err:find('WRONGTYPE', 1, true) then error(reply.err, 0) end
  return true
end

local now = ARGV[1]
if now == '' then
  local time = call('TIME')
  now = time[1] .. string.format('%06d', time[2]):sub(1, 3)
end

-- The place in ARGV of what is read next.
local at = 2

-- The index: each message is in one sorted set, that of its state, time to live (where finished), queue and actor,
-- by the moment in microseconds at which it came there. So a set of finished messages is trimmed by their age alone.
-- Each call that a script makes takes Redis about a microsecond: a set is looked after when it is due, not each time.
local moment
-- Whether the message could not be noted.
local unlisted = false

-- Add to a key of the index, also where another program has stored something else there; returns what the command does.
local function add(command, key, ...)
  local added = redis.pcall(command, key, ...)
  if type(added) == 'table' and added.err:find('WRONGTYPE', 1, true) then
    call('DEL', key)
    added = redis.pcall(command, key, ...)
  end
  return added
end

-- Let a set of the index, and the list of their names, live for so long.
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
    -- Names of sets that are gone go when others come, also where nobody ever lists.
    for _, other in ipairs(call('SRANDMEMBER', prefix, 2)) do
      if redis.pcall('EXISTS', prefix .. other) == 0 then call('SREM', prefix, other) end
    end
  end
end

-- Note that a message is in this state.
--   id: its id; lives: its time to live where it is finished, or ''; ttl: how long its record lives, in milliseconds;
--   since: the moment at which it came there, nothing for the present one.
local function index(id, state, lives, queue, actor, ttl, since)
  local prefix = ARGV[#ARGV]
  if not since then
    if moment then
      moment = moment + 1
    else
      moment = ARGV[#ARGV - 3]
      if moment == '' then
        local time = call('TIME')
        moment = time[1] * 1000000 + time[2]
      end
    end
    since = moment
  end
  local name = state .. '\n' .. lives .. '\n' .. (queue or '') .. '\n' .. (actor or '')
  local set = prefix .. name
  if type(add('ZADD', set, since, id)) == 'table' then
    unlisted = true
    return
  end
  if lives ~= '' then ttl = lives + 0 end
  -- It lives longer than any of its messages does: what is left of those is dropped when it is met.
  local left = call('PTTL', set)
  if left < ttl or left < 2 * ttl - 60000 then keep(set, name, 2 * ttl) end
  local size = ARGV[#ARGV - 2] + 0
  -- A large set may be larger by some messages for a while.
  if size < 1000 or since % 13 == 0 then
    if lives ~= '' then call('ZREMRANGEBYSCORE', set, '-inf', since - lives * 1000) end
    local count = call('ZCARD', set)
    if count > size then call('ZREMRANGEBYRANK', set, 0, count - size - 1) end
  end
end

-- All but the plain writes, which are most of the updates. It is a function so that they need not wait for Lua to
-- make a dozen others.
local function define()
  -- A time to live that PEXPIRE takes (LONGEST_TTL in record.py).
  local function limited(ttl)
    return math.min(math.max(1, ttl), 3155760000000)
  end

  -- Whether what is there of these texts are numbers as record.py knows them (is_sound there), all but the progress
  -- whole ones of up to 15 digits: Lua also knows '0x10', ' 1' and 'nan'.
  local function are_sound(version, number, place, scheduled_at, live_ttl, progress, attempts)
    local whole = version .. ' ' .. number .. ' ' .. (place or 0) .. ' ' .. (scheduled_at or 0) .. ' ' .. (live_ttl or 0)
      .. ' ' .. (attempts or 0)
    return whole:find('^%-?%d+ %-?%d+ %-?%d+ %-?%d+ %-?%d+ %-?%d+$')
      and (#whole < 26 or not whole:find(('%d'):rep(16)))
      and (not progress or progress:find('^%-?%d+%.?%d*[eE]?[+-]?%d*$') and math.abs(tonumber(progress) or math.huge) < math.huge)
  end

  -- What an update from outside writes into W beside a rate: when the run had last written.
  local function moment_of(updated_at)
    return updated_at and updated_at:find('^%d+$') and updated_at or '0'
  end

  local function take()
    at = at + 1
    return ARGV[at - 1]
  end

  -- Set the pairs list[first..last], in pieces that the Lua stack can hold.
  local function set_pairs(key, list, first, last)
    while first < last do
      local piece = math.min(last, first + 1999)
      call('HSET', key, unpack(list, first, piece))
      first = piece + 1
    end
  end

  -- What number_text in record.py writes.
  local function text_of(number)
    if number == math.floor(number) and math.abs(number) < 9007199254740992 then
      return string.format('%.0f', number)
    end
    return string.format('%.17g', number)
  end

  -- Renew the life of an unfinished record (live_ttl_of in record.py).
  local function renew(key, scheduled_at, live_ttl)
    local ttl = (live_ttl or 604800000) + 0
    if scheduled_at then
      ttl = ttl + math.max(0, scheduled_at - now)
    end
    ttl = limited(ttl)
    call('PEXPIRE', key, ttl)
    return ttl
  end

  -- What a record says of itself; empty where there is none, or something that is none (is_sound in record.py says
  -- what is).
  local function read(key)
    local found = redis.pcall('HMGET', key, 's', 'v', 'e', 'n', 'r', 'q', 'D', 'L', 'p', 'A', 'T', 'a', 'Q')
    local state = found[1]
    if is_foreign(found) or not state then return {} end
    if (state == '0' or state == '1' or state == '2' or state == '3') and found[2] and found[3] and found[4]
      and (not found[5] or found[6])
      and are_sound(found[2], found[4], found[6], found[7], found[8], found[9], found[10])
    then
      return {
        state = state, version = found[2], root = found[3], number = found[4], run = found[5], place = found[6],
        scheduled_at = found[7], live_ttl = found[8], progress = found[9], attempts = found[10], status_ttl = found[11],
        actor = found[12], queue = found[13], finished = state > '1',
      }
    end
    return {}
  end

  -- Make room for a new record, also where something lies that is none. Nothing is deleted where nothing is: once a
  -- script has written, Redis no longer refuses its writes for want of memory. A record keeps its state for now: on a
  -- cluster, a key whose slot moves cannot be made anew here once it is gone.
  local function clear(key)
    local names = redis.pcall('HKEYS', key)
    if is_foreign(names) or #names > 0 and call('HEXISTS', key, 's') == 0 then
      call('DEL', key)
      return
    end
    for first = 1, #names, 2000 do
      local piece = {}
      for i = first, math.min(#names, first + 1999) do
        if names[i] ~= 's' then piece[#piece + 1] = names[i] end
      end
      if #piece > 0 then call('HDEL', key, unpack(piece)) end
    end
  end

  -- The sets that a message may be in, each with the time to live in its name.
  local function sets_of(old)
    local prefix = ARGV[#ARGV]
    local queue, actor = old.queue or '', old.actor or ''
    if not old.finished then return {{prefix .. old.state .. '\n\n' .. queue .. '\n' .. actor, ''}} end
    -- Which of them it is in, nobody remembers; it is a rare thing to leave a final state.
    local found = {}
    for _, name in ipairs(redis.pcall('SMEMBERS', prefix)) do
      local state, ttl, its_queue, its_actor = name:match('^(.)\n(%d*)\n([^\n]*)\n([^\n]*)$')
      if state == old.state and #ttl < 16 and its_queue == queue and its_actor == actor then
        found[#found + 1] = {prefix .. name, ttl}
      end
    end
    return found
  end

  -- Take a message out of the index.
  local function unindex(id, old)
    for _, set in ipairs(sets_of(old)) do
      redis.pcall('ZREM', set[1], id)
    end
  end

  -- To two significant digits, upwards: odd times to live must not make a set each.
  local rounded = {}
  local function round(ttl)
    if not rounded[ttl] then
      local text = string.format('%.0f', ttl)
      local unit = 10 ^ math.max(0, #text - 2)
      rounded[ttl] = string.format('%.0f', math.ceil(ttl / unit) * unit)
    end
    return rounded[ttl]
  end

  -- A message that was `old` has come into this state.
  local function move(key, old, new, state, ttl)
    if ARGV[#ARGV] == '' then return end
    local id = key:sub(ARGV[#ARGV - 1] + 1)
    if old.state and (old.finished or old.state ~= state or old.queue ~= new.queue or old.actor ~= new.actor) then
      unindex(id, old)
    end
    index(id, state, state > '1' and round(ttl) or '', new.queue, new.actor, ttl)
  end

  -- A message that was `old`, and is in the same state, may have another queue or actor now: it keeps its place.
  local function rename(key, old, new)
    if ARGV[#ARGV] == '' or old.queue == new.queue and old.actor == new.actor then return end
    local id = key:sub(ARGV[#ARGV - 1] + 1)
    for _, set in ipairs(sets_of(old)) do
      local since = redis.pcall('ZSCORE', set[1], id)
      if type(since) == 'table' then
        unlisted = true
      elseif since then
        -- Other programs may have stored an infinite one: it would have the whole set trimmed.
        if math.abs(since) >= 9007199254740992 then since = nil end
        redis.pcall('ZREM', set[1], id)
        index(id, old.state, set[2], new.queue, new.actor, math.max(604800000, call('PTTL', key)), since)
      end
    end
  end

  -- Whether a field of a user was deleted: what was given with an enqueue does not bring it back (DELETED_PREFIX in
  -- record.py).
  local function is_deleted(key, name)
    return name:sub(1, 1) == ':' and call('HEXISTS', key, '-' .. name) == 1
  end

  local function enqueue(key)
    local old = read(key)
    local root, number, count = take(), take(), take()
    local first, last = at, at + 2 * count - 1
    at = last + 1
    local version = (old.version or 0) + 1
    local same = old.root == root
    if same and tonumber(number) <= tonumber(old.number) then
      local added = 0
      local new = {actor = old.actor, queue = old.queue}
      for i = first, last, 2 do
        local name = ARGV[i]
        if name ~= 'D' and name ~= 'x' and name ~= 'it' and name ~= 'p' and not is_deleted(key, name) then
          added = added + call('HSETNX', key, name, ARGV[i + 1])
          if name == 'a' and not new.actor then new.actor = ARGV[i + 1] end
          if name == 'Q' and not new.queue then new.queue = ARGV[i + 1] end
        end
      end
      if added > 0 then
        call('HSET', key, 'v', version, 'U', now)
        rename(key, old, new)
        publish('PUBLISH', key, version)
      end
      return 2
    end
    if not same and old.state and old.root ~= '0' and number + 0 > 1 and not old.finished then return 2 end
    local scheduled_at, live_ttl = false, false
    local new = {actor = old.actor, queue = old.queue}
    if (same or old.root == '0') and not old.finished then
      call('HDEL', key, 'r', 'q', 'D', 'R', 'W', 'H')
      call('HSET', key, 's', '0', 'e', root, 'n', number, 'v', version, 'U', now)
      live_ttl = old.live_ttl
      for i = first, last, 2 do
        local name, text = ARGV[i], ARGV[i + 1]
        if name == 'D' or name == 'x' or name == 'it' then
          call('HSET', key, name, text)
          if name == 'D' then scheduled_at = text end
        elseif not is_deleted(key, name) then
          call('HSETNX', key, name, text)
          if name == 'L' and not live_ttl then live_ttl = text end
          if name == 'a' and not new.actor then new.actor = text end
          if name == 'Q' and not new.queue then new.queue = text end
        end
      end
    else
      clear(key)
      new = {}
      for i = first, last, 2 do
        local name, text = ARGV[i], ARGV[i + 1]
        if name == 'D' then
          scheduled_at = text
        elseif name == 'L' then
          live_ttl = text
        elseif name == 'a' then
          new.actor = text
        elseif name == 'Q' then
          new.queue = text
        end
      end
      if count + 0 < 1000 then
        call('HSET', key, 's', '0', 'v', version, 'e', root, 'n', number, 'U', now, unpack(ARGV, first, last))
      else
        call('HSET', key, 's', '0', 'v', version, 'e', root, 'n', number, 'U', now)
        set_pairs(key, ARGV, first, last)
      end
    end
    move(key, old, new, '0', renew(key, scheduled_at, live_ttl))
    publish('PUBLISH', key, version)
    return 1
  end

  -- What the present update deletes and counts, nothing for most; and whether a count was left out.
  local deleted, counts, uncounted

  -- The number in a text, 0 for none and for null; nothing where it cannot be counted on (count_on in record.py).
  local function number_in(text)
    if not text or text == 'null' then return 0 end
    if #text > 40 or not (text:find('^%-?%d+$') or text:find('^%-?%d+%.%d+$') or text:find('^%-?%d+[eE][+-]?%d+$')
      or text:find('^%-?%d+%.%d+[eE][+-]?%d+$')) then return nil end
    local number = tonumber(text)
    return number and math.abs(number) < 9007199254740992 and number
  end

  -- Delete what the present update deletes, and add the sums that it counts to the pairs that will be written, which
  -- have its fields already; returns their number.
  local function add_changes(key, written, size)
    local set = {}
    for i = 1, size, 2 do set[written[i]] = written[i + 1] end
    for _, name in ipairs(deleted) do call('HDEL', key, name) end
    for i = 1, #counts, 2 do
      local name = counts[i]
      local number = number_in(set[name] or call('HGET', key, name))
      local sum = number and number + counts[i + 1]
      if sum and math.abs(sum) < 9007199254740992 then
        written[size + 1], written[size + 2] = name, text_of(sum)
        size = size + 2
      else
        uncounted = true
      end
    end
    return size
  end

  -- Add what an update sets to the pairs that will be written; returns their number.
  local function add_fields(key, new, written, size, increment)
    local count = take()
    local progress = new.progress
    for i = at, at + 2 * count - 1, 2 do
      local name, text = ARGV[i], ARGV[i + 1]
      written[size + 1], written[size + 2] = name, text
      size = size + 2
      if name == 'p' then
        progress = text
      elseif name == 'D' then
        new.scheduled_at = text
      elseif name == 'L' then
        new.live_ttl = text
      elseif name == 'a' then
        new.actor = text
      elseif name == 'Q' then
        new.queue = text
      end
    end
    at = at + 2 * count
    if increment ~= '0' then
      written[size + 1], written[size + 2] = 'p', text_of((tonumber(progress or 0) or 0) + increment)
      size = size + 2
    end
    return counts and add_changes(key, written, size) or size
  end

  local function skip_fields()
    at = at + 1 + 2 * ARGV[at]
  end

  local function finish(key, state, ttl)
    if state == '2' then
      call('HDEL', key, 'D', 'R', 'W', 'H', 'x', 'it')
    else
      call('HDEL', key, 'D', 'R', 'W', 'H')
    end
    if ttl then call('PEXPIRE', key, ttl) end
  end

  -- Whether a run may write (_standing in update.py).
  local function standing(old, root, number, run, place, start, state)
    if not old.state then return 5 end
    if run ~= '0' and old.run == run then
      if tonumber(place) <= tonumber(old.place) then return 3 end
      return old.finished and 4 or 1
    end
    if not start and state == '' then return 4 end
    if old.root ~= root then return (start or run == '0') and 5 or 4 end
    local ahead = number - old.number
    if ahead < 0 then return 4 end
    if old.finished then return ahead == 0 and 4 or 5 end
    return (start or run == '0' or not old.run or ahead > 0) and 1 or 4
  end

  local function transition(key)
    local old = read(key)
    local root, number, run, place = take(), take(), take(), take()
    local start, create = take() == '1', take() == '1'
    local state, attempts, increment, ttl = take(), take(), take(), take()
    local outcome = standing(old, root, number, run, place, start, state)
    if outcome ~= 1 and not (outcome == 5 and create) then
      skip_fields()
      return outcome
    end
    local version = (old.version or 0) + 1
    local written = {'v', version, 'U', now}
    local size = 4
    if start or create or state ~= '' then
      written[5], written[6], written[7], written[8] = 'e', root, 'n', number
      size = 8
    end
    local new = {
      actor = old.actor, queue = old.queue, scheduled_at = old.scheduled_at, live_ttl = old.live_ttl,
      progress = old.progress, state = old.state,
    }
    if outcome == 5 then
      clear(key)
      new = {state = '1'}
      written[9], written[10] = 's', '1'
      size = 10
      if run ~= '0' then
        written[11], written[12] = 'A', attempts
        size = 12
      end
    elseif start then
      call('HDEL', key, 'R', 'W', 'F', 'k', 'D')
      -- What other messages have counted before the first run stays.
      if old.attempts and old.progress then
        call('HDEL', key, 'p')
        new.progress = false
      end
      new.scheduled_at, new.state = false, '1'
      written[9], written[10] = 's', '1'
      written[11], written[12] = 'A', math.max((tonumber(old.attempts or 0) or 0) + 1, attempts)
      size = 12
    end
    if run ~= '0' then
      written[size + 1], written[size + 2], written[size + 3], written[size + 4] = 'r', run, 'q', place
      size = size + 4
      if start or outcome == 5 then
        written[size + 1], written[size + 2] = 'H', now
        size = size + 2
      end
    end
    size = add_fields(key, new, written, size, increment)
    if state ~= '' then
      written[size + 1], written[size + 2] = 's', state
      size = size + 2
      new.state = state
    end
    set_pairs(key, written, 1, size)
    if state > '1' then
      finish(key, state, ttl)
    else
      if state ~= '' then call('HDEL', key, 'F') end
      ttl = renew(key, new.scheduled_at, new.live_ttl)
    end
    if start or state ~= '' or outcome == 5 then
      move(key, old, new, new.state, ttl)
    else
      rename(key, old, new)
    end
    publish('PUBLISH', key, version)
    return 1
  end

  local function outside(key)
    local state, increment, ttl = take(), take(), take()
    local old = read(key)
    if not old.state then
      skip_fields()
      return 5
    end
    local version = old.version + 1
    local new = {
      actor = old.actor, queue = old.queue, scheduled_at = old.scheduled_at, live_ttl = old.live_ttl,
      progress = old.progress,
    }
    local written = {'v', version, 'U', now}
    local known, mark = call('HMGET', key, 'R', 'W', 'U'), nil
    if known[1] and (not known[2] or known[2] == 'null') then mark = moment_of(known[3]) end
    local size = add_fields(key, new, written, 4, increment)
    if state ~= '' then
      written[size + 1], written[size + 2] = 's', state
      size = size + 2
    end
    if mark then
      written[size + 1], written[size + 2] = 'W', mark
      size = size + 2
    end
    set_pairs(key, written, 1, size)
    if state == '' then
      if not old.finished then renew(key, new.scheduled_at, new.live_ttl) end
      rename(key, old, new)
      publish('PUBLISH', key, version)
      return 1
    end
    if state > '1' then
      call('HSETNX', key, 'F', now)
      -- One that is finished already lives as long as it was to.
      local own = old.status_ttl
      ttl = limited((own and #own < 16 and own:find('^%d+$') and own or ttl) + 0)
      finish(key, state, not old.finished and ttl)
      if old.finished then ttl = call('PTTL', key) end
    else
      call('HDEL', key, 'F')
      ttl = renew(key, new.scheduled_at, new.live_ttl)
    end
    move(key, old, new, state, ttl)
    publish('PUBLISH', key, version)
    return 1
  end

  local function heartbeat(key)
    local run = take()
    local old = read(key)
    skip_fields()
    if not old.state then return 5 end
    if old.run ~= run or old.finished then return 4 end
    call('HSET', key, 'H', now)
    renew(key, old.scheduled_at, old.live_ttl)
    return 1
  end

  local function delete(key)
    local old = read(key)
    skip_fields()
    if old.state and ARGV[#ARGV] ~= '' then unindex(key:sub(ARGV[#ARGV - 1] + 1), old) end
    if call('DEL', key) == 0 then return 5 end
    publish('PUBLISH', key, 0)
    return 1
  end

  local function take_many(number)
    at = at + number
    -- In a table of its own: there may be more of them than the Lua stack can hold.
    local list = {}
    for i = at - number, at - 1 do list[#list + 1] = ARGV[i] end
    return list
  end

  local function change(key)
    deleted = take_many(take() + 0)
    counts, uncounted = take_many(2 * take()), false
    local outcome = take() == '1' and transition(key) or outside(key)
    deleted, counts = nil, nil
    return outcome == 1 and uncounted and 7 or outcome
  end

  return {
      ['0'] = enqueue, ['1'] = transition, ['3'] = heartbeat, ['5'] = outside, ['6'] = delete, ['7'] = change,
    },
    {set_pairs = set_pairs, text_of = text_of, limited = limited, are_sound = are_sound, moment_of = moment_of}
end

local kinds, tools
local outcomes = {}
for i = 1, #KEYS do
  local key, kind = KEYS[i], ARGV[at]
  at = at + 1
  if kind == '4' or kind == '2' then
    local from_run = kind == '4'
    local run, place
    if from_run then
      run, place = ARGV[at], ARGV[at + 1]
      at = at + 2
    end
    local increment, count = ARGV[at], tonumber(ARGV[at + 1])
    local first, last = at + 2, at + 1 + 2 * count
    at = last + 1
    local old
    if from_run then
      old = redis.pcall('HMGET', key, 's', 'v', 'e', 'n', 'r', 'q', 'D', 'L', 'p', 'A')
    else
      old = redis.pcall('HMGET', key, 's', 'v', 'e', 'n', 'r', 'q', 'D', 'L', 'p', 'A', 'R', 'W')
    end
    local state, version, number, progress = old[1], old[2], old[4], old[9]
    local sound = not (old.err and is_foreign(old)) and (state == '1' or state == '2' or state == '0' or state == '3')
      and version and old[3] and number and (old[6] or not old[5])
    if sound then
      local text = version .. number .. (old[6] or '') .. (progress or '') .. (old[10] or '')
      if text:find('%D') or old[7] or old[8]
        or #text > 15 and (#version > 15 or #number > 15 or #(old[6] or '') > 15 or #(progress or '') > 15 or #(old[10] or '') > 15)
        or version == '' or number == '' or old[6] == '' or progress == '' or old[10] == ''
      then
        -- Something else than a few small whole numbers.
        if not kinds then kinds, tools = define() end
        sound = tools.are_sound(version, number, old[6], old[7], old[8], progress, old[10])
      end
    end
    local outcome = 1
    if not sound then
      outcome = 5
    elseif from_run then
      if old[5] ~= run then
        outcome = 4
      elseif tonumber(place) <= tonumber(old[6]) then
        outcome = 3
      elseif state > '1' then
        outcome = 4
      end
    end
    if outcome == 1 then
      if old[11] and (not old[12] or old[12] == 'null') then
        -- The first from outside since the run told its rate.
        if not kinds then kinds, tools = define() end
        call('HSET', key, 'W', tools.moment_of(call('HGET', key, 'U')))
      end
      version = version + 1
      local scheduled_at, ttl = old[7], old[8] or 604800000
      for j = first, last, 2 do
        local name = ARGV[j]
        if name == 'p' then
          progress = ARGV[j + 1]
        elseif name == 'D' then
          scheduled_at = ARGV[j + 1]
        elseif name == 'L' then
          ttl = ARGV[j + 1]
        end
      end
      if count < 1000 then
        if from_run then
          call('HSET', key, 'v', version, 'U', now, 'q', place, unpack(ARGV, first, last))
        else
          call('HSET', key, 'v', version, 'U', now, unpack(ARGV, first, last))
        end
      else
        if not kinds then kinds, tools = define() end
        call('HSET', key, 'v', version, 'U', now)
        if from_run then call('HSET', key, 'q', place) end
        tools.set_pairs(key, ARGV, first, last)
      end
      if increment ~= '0' then
        local sum = (tonumber(progress or 0) or 0) + increment
        if sum % 1 == 0 and sum < 9007199254740992 and sum > -9007199254740992 then
          call('HSET', key, 'p', string.format('%.0f', sum))
        else
          if not kinds then kinds, tools = define() end
          call('HSET', key, 'p', tools.text_of(sum))
        end
      end
      if state < '2' then
        if scheduled_at or ttl ~= 604800000 then
          if not kinds then kinds, tools = define() end
          -- A run has left its message's delay behind.
          ttl = tools.limited(ttl + (scheduled_at and not from_run and math.max(0, scheduled_at - now) or 0))
        end
        call('PEXPIRE', key, ttl)
      end
      publish('PUBLISH', key, version)
    end
    outcomes[i] = outcome
  elseif kind == '0' and ARGV[at + 2] + 0 < 1000 and call('EXISTS', key) == 0 then
    -- A message that is new, as most are.
    local first, last = at + 3, at + 2 + 2 * ARGV[at + 2]
    local ttl, delay, queue, actor = 604800000, 0
    for j = first, last, 2 do
      local name, text = ARGV[j], ARGV[j + 1]
      if name == 'D' then
        delay = math.max(0, text - now)
      elseif name == 'L' then
        ttl = text
      elseif name == 'a' then
        actor = text
      elseif name == 'Q' then
        queue = text
      end
    end
    ttl = math.min(math.max(1, ttl + delay), 3155760000000)
    call('HSET', key, 's', '0', 'v', 1, 'e', ARGV[at], 'n', ARGV[at + 1], 'U', now, unpack(ARGV, first, last))
    call('PEXPIRE', key, ttl)
    if ARGV[#ARGV] ~= '' then index(key:sub(ARGV[#ARGV - 1] + 1), '0', '', queue, actor, ttl) end
    publish('PUBLISH', key, 1)
    outcomes[i] = 1
    at = last + 1
  else
    if not kinds then kinds, tools = define() end
    outcomes[i] = kinds[kind](key)
  end
  if unlisted then
    outcomes[i], unlisted = outcomes[i] + 10, false
  end
end
return outcomes
