-- What an update does to a record, inside Redis: the mirror of `apply` in ../record.py.
--
-- KEYS[i]: the hash of the i-th update's message.
-- ARGV[1]: the present moment in epoch milliseconds, or '' for the server's own clock.
-- ARGV then holds for each update its kind, what the kind needs (below), the number of fields, and as many pairs of
-- stored name and JSON text:
--   0 enqueue: root, number
--   1 run with a transition: root, number, run ('0': none), place, start ('1'), create ('1'), state ('': none),
--     attempts, increment, ttl
--   2 outside: state ('': none), increment, ttl
--   3 heartbeat: run
--   4 run without a transition: run, place, increment
-- Returns the outcome of each update: 1 applied, 2 aside, 3 duplicate, 4 refused, 5 missing.
--
-- Numbers are compared as numbers and tokens as texts; nothing is decoded that was not asked for.

local call = redis.call
local now = ARGV[1]
if now == '' then
  local time = call('TIME')
  now = time[1] .. string.format('%06d', time[2]):sub(1, 3)
end

-- The place in ARGV of what is read next.
local at = 2

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
  local ttl = live_ttl or 604800000
  if scheduled_at then
    ttl = ttl + math.max(0, scheduled_at - now)
  end
  call('PEXPIRE', key, ttl)
end

-- What a record says of itself: state, version, root, number, run, place, scheduled at, live ttl, progress, attempts.
-- Nothing where there is no record, or something that is none (is_sound in record.py says what is).
local function fetch(key)
  local found = redis.pcall('HMGET', key, 's', 'v', 'e', 'n', 'r', 'q', 'D', 'L', 'p', 'A')
  local state = found[1]
  if found.err or not state then return nil end
  if (state == '0' or state == '1' or state == '2' or state == '3')
    and tonumber(found[2]) and found[3] and tonumber(found[4])
    and (not found[5] or tonumber(found[6]))
    and tonumber(found[7] or 0) and tonumber(found[8] or 0) and tonumber(found[9] or 0) and tonumber(found[10] or 0)
  then
    return found
  end
  return nil
end

-- The same by name, for those who need most of it; empty for nothing.
local function read(key)
  local found = fetch(key)
  if not found then return {} end
  return {
    state = found[1], version = found[2], root = found[3], number = found[4], run = found[5], place = found[6],
    scheduled_at = found[7], live_ttl = found[8], progress = found[9], attempts = found[10],
    finished = found[1] > '1',
  }
end

-- Make room for a new record, also where something lies that is none. Nothing is deleted where nothing is:
-- once a script has written, Redis no longer refuses its writes for want of memory.
local function clear(key)
  if call('EXISTS', key) == 1 then call('DEL', key) end
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
    for i = first, last, 2 do
      local name = ARGV[i]
      if name ~= 'D' and name ~= 'x' and name ~= 'it' then
        added = added + call('HSETNX', key, name, ARGV[i + 1])
      end
    end
    if added > 0 then call('HSET', key, 'v', version, 'U', now) end
    return 2
  end
  local scheduled_at, live_ttl = false, false
  if same and not old.finished then
    call('HDEL', key, 'r', 'q', 'D', 'R', 'H')
    call('HSET', key, 's', '0', 'n', number, 'v', version, 'U', now)
    live_ttl = old.live_ttl
    for i = first, last, 2 do
      local name, text = ARGV[i], ARGV[i + 1]
      if name == 'D' or name == 'x' or name == 'it' then
        call('HSET', key, name, text)
        if name == 'D' then scheduled_at = text end
      else
        call('HSETNX', key, name, text)
        if name == 'L' and not live_ttl then live_ttl = text end
      end
    end
  else
    clear(key)
    for i = first, last, 2 do
      if ARGV[i] == 'D' then scheduled_at = ARGV[i + 1] end
      if ARGV[i] == 'L' then live_ttl = ARGV[i + 1] end
    end
    call('HSET', key, 's', '0', 'v', version, 'e', root, 'n', number, 'U', now)
    set_pairs(key, ARGV, first, last)
  end
  renew(key, scheduled_at, live_ttl)
  return 1
end

-- Add what an update sets to the pairs that will be written; returns their number.
local function add_fields(old, written, size, increment)
  local count = take()
  local progress = old.progress
  for i = at, at + 2 * count - 1, 2 do
    local name, text = ARGV[i], ARGV[i + 1]
    written[size + 1], written[size + 2] = name, text
    size = size + 2
    if name == 'p' then
      progress = text
    elseif name == 'D' then
      old.scheduled_at = text
    elseif name == 'L' then
      old.live_ttl = text
    end
  end
  at = at + 2 * count
  if increment ~= '0' then
    written[size + 1], written[size + 2] = 'p', text_of((tonumber(progress or 0) or 0) + increment)
    size = size + 2
  end
  return size
end

local function skip_fields()
  at = at + 1 + 2 * ARGV[at]
end

local function finish(key, state, ttl)
  if state == '2' then
    call('HDEL', key, 'D', 'R', 'H', 'x', 'it')
  else
    call('HDEL', key, 'D', 'R', 'H')
  end
  call('PEXPIRE', key, ttl)
end

-- Whether a run may write (_standing in record.py).
local function standing(old, root, number, run, place, start, state)
  if not old.state then return 5 end
  if run ~= '0' and old.run == run then
    if tonumber(place) <= tonumber(old.place) then return 3 end
    return old.finished and 4 or 1
  end
  if not start and state == '' then return 4 end
  if old.root ~= root then return 5 end
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
  local written = {'v', (old.version or 0) + 1, 'U', now, 'e', root, 'n', number}
  local size = 8
  if outcome == 5 then
    clear(key)
    old = {}
    written[9], written[10] = 's', '1'
    size = 10
    if run ~= '0' then
      written[11], written[12] = 'A', attempts
      size = 12
    end
  elseif start then
    call('HDEL', key, 'p', 'R', 'F', 'k', 'D', 'H', 'ir')
    old.scheduled_at, old.progress = false, false
    written[9], written[10] = 's', '1'
    written[11], written[12] = 'A', math.max((tonumber(old.attempts or 0) or 0) + 1, attempts)
    size = 12
  end
  if run ~= '0' then
    written[size + 1], written[size + 2], written[size + 3], written[size + 4] = 'r', run, 'q', place
    size = size + 4
  end
  size = add_fields(old, written, size, increment)
  if state ~= '' then
    written[size + 1], written[size + 2] = 's', state
    size = size + 2
  end
  set_pairs(key, written, 1, size)
  if state > '1' then
    finish(key, state, ttl)
  else
    if state ~= '' then call('HDEL', key, 'F') end
    renew(key, old.scheduled_at, old.live_ttl)
  end
  return 1
end

local function write(key)
  local run, place, increment = take(), take(), take()
  local old = fetch(key)
  local outcome = 1
  if not old then
    outcome = 5
  elseif old[5] ~= run then
    outcome = 4
  elseif tonumber(place) <= tonumber(old[6]) then
    outcome = 3
  elseif old[1] > '1' then
    outcome = 4
  end
  if outcome ~= 1 then
    skip_fields()
    return outcome
  end
  local known = {progress = old[9], live_ttl = old[8]}
  local written = {'v', old[2] + 1, 'U', now, 'q', place}
  set_pairs(key, written, 1, add_fields(known, written, 6, increment))
  renew(key, false, known.live_ttl)
  return 1
end

local function outside(key)
  local state, increment, ttl = take(), take(), take()
  local old = fetch(key)
  if not old then
    skip_fields()
    return 5
  end
  local known = {progress = old[9], scheduled_at = old[7], live_ttl = old[8]}
  local written = {'v', old[2] + 1, 'U', now}
  local size = add_fields(known, written, 4, increment)
  local finished = old[1] > '1'
  if state ~= '' then
    written[size + 1], written[size + 2] = 's', state
    size = size + 2
    finished = state > '1'
  end
  set_pairs(key, written, 1, size)
  if state == '' then
    if not finished then renew(key, known.scheduled_at, known.live_ttl) end
  elseif finished then
    call('HSETNX', key, 'F', now)
    finish(key, state, ttl)
  else
    call('HDEL', key, 'F')
    renew(key, known.scheduled_at, known.live_ttl)
  end
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

local kinds = {['0'] = enqueue, ['1'] = transition, ['2'] = outside, ['3'] = heartbeat, ['4'] = write}
local outcomes = {}
for i = 1, #KEYS do
  outcomes[i] = kinds[take()](KEYS[i])
end
return outcomes
