-- What an update does to a record, inside Redis: the mirror of `apply` in ../record.py.
--
-- KEYS[i]: the hash of the i-th update's message.
-- ARGV[1]: the present moment in epoch milliseconds, or '' for the server's own clock.
-- ARGV then holds for each update:
--   kind (0 enqueue, 1 run, 2 outside, 3 heartbeat), root, number, run ('0': none), place, start ('1'),
--   create ('1'), state ('': none), attempts, increment ('0': none), ttl, n, and n pairs of stored name, JSON text.
-- Returns the outcome of each update: 1 applied, 2 aside, 3 duplicate, 4 refused, 5 missing.
--
-- Numbers are compared as numbers and tokens as texts; nothing is decoded that was not asked for.

local call = redis.call
local now = ARGV[1]
if now == '' then
  local time = call('TIME')
  now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
end

local WEEK = 604800000

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
  local ttl = tonumber(live_ttl or WEEK)
  if scheduled_at then
    ttl = ttl + math.max(0, scheduled_at - now)
  end
  call('PEXPIRE', key, string.format('%.0f', ttl))
end

-- Whether a hash is not a record (is_sound in record.py says when it is).
local function damaged(old)
  return not (old[1]:match('^[0-3]$') and tonumber(old[2]) and old[3] and tonumber(old[4]))
    or (old[5] and not tonumber(old[6]))
    or (old[7] and not tonumber(old[7]))
    or (old[8] and not tonumber(old[8]))
end

local function update(key, at)
  local kind = ARGV[at]
  local root, number = ARGV[at + 1], ARGV[at + 2]
  local run, place = ARGV[at + 3], ARGV[at + 4]
  local start, create = ARGV[at + 5] == '1', ARGV[at + 6] == '1'
  local state, attempts = ARGV[at + 7], ARGV[at + 8]
  local increment, ttl = ARGV[at + 9], ARGV[at + 10]
  local first, last = at + 12, at + 11 + 2 * ARGV[at + 11]

  local old = redis.pcall('HMGET', key, 's', 'v', 'e', 'n', 'r', 'q', 'D', 'L')
  if old.err or (old[1] and damaged(old)) then
    call('DEL', key)
    old = {}
  end
  local exists = old[1]
  local finished = exists and exists > '1'
  local scheduled_at, live_ttl = old[7], old[8]
  local version = string.format('%.0f', (old[2] or 0) + 1)

  if kind == '3' then
    if not exists then return 5 end
    if old[5] ~= run or finished then return 4 end
    call('HSET', key, 'H', now)
    renew(key, scheduled_at, live_ttl)
    return 1
  end

  if kind == '0' then
    local same = exists and old[3] == root
    if same and tonumber(number) <= tonumber(old[4]) then
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
    if same and not finished then
      call('HDEL', key, 'r', 'q', 'D', 'R', 'H')
      scheduled_at = false
      local written = {'s', '0', 'n', number, 'v', version, 'U', now}
      for i = first, last, 2 do
        local name = ARGV[i]
        if name == 'D' or name == 'x' or name == 'it' then
          written[#written + 1] = name
          written[#written + 1] = ARGV[i + 1]
          if name == 'D' then scheduled_at = ARGV[i + 1] end
        else
          call('HSETNX', key, name, ARGV[i + 1])
          if name == 'L' and not live_ttl then live_ttl = ARGV[i + 1] end
        end
      end
      set_pairs(key, written, 1, #written)
    else
      -- Also what is not ours under our key.
      call('DEL', key)
      scheduled_at, live_ttl = false, false
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

  local written = {'v', version, 'U', now}
  local function write(name, text)
    written[#written + 1] = name
    written[#written + 1] = text
  end
  local progress = false

  if kind == '1' then
    local standing = 1
    if not exists then
      standing = 5
    elseif run ~= '0' and old[5] == run then
      if tonumber(place) <= tonumber(old[6]) then return 3 end
      if finished then return 4 end
    elseif not start and state == '' then
      return 4
    elseif old[3] ~= root then
      standing = 5
    else
      local ahead = number - (old[4] or 0)
      if ahead < 0 then return 4 end
      if finished then
        if ahead == 0 then return 4 end
        standing = 5
      elseif not (start or run == '0' or not old[5]) then
        return 4
      end
    end
    if standing == 5 then
      if not create then return 5 end
      call('DEL', key)
      scheduled_at, live_ttl = false, false
      write('s', '1')
      if run ~= '0' then write('A', attempts) end
    elseif start then
      call('HDEL', key, 'p', 'R', 'F', 'k', 'D', 'H', 'ir')
      scheduled_at = false
      local runs = (tonumber(call('HGET', key, 'A') or 0) or 0) + 1
      write('A', string.format('%.0f', math.max(runs, attempts)))
      write('s', '1')
    end
    write('e', root)
    write('n', number)
    if run ~= '0' then
      write('r', run)
      write('q', place)
    end
  elseif not exists then
    return 5
  end

  for i = first, last, 2 do
    local name, text = ARGV[i], ARGV[i + 1]
    write(name, text)
    if name == 'p' then
      progress = text
    elseif name == 'D' then
      scheduled_at = text
    elseif name == 'L' then
      live_ttl = text
    end
  end
  if increment ~= '0' then
    progress = tonumber(progress or call('HGET', key, 'p') or 0) or 0
    write('p', text_of(progress + increment))
  end

  if state == '2' or state == '3' then
    write('s', state)
    set_pairs(key, written, 1, #written)
    if kind == '2' then call('HSETNX', key, 'F', now) end
    if state == '2' then
      call('HDEL', key, 'D', 'R', 'H', 'x', 'it')
    else
      call('HDEL', key, 'D', 'R', 'H')
    end
    call('PEXPIRE', key, ttl)
  else
    if state ~= '' then
      write('s', state)
      call('HDEL', key, 'F')
      finished = false
    end
    set_pairs(key, written, 1, #written)
    if kind == '1' or not finished then renew(key, scheduled_at, live_ttl) end
  end
  return 1
end

local outcomes = {}
local at = 2
for i = 1, #KEYS do
  outcomes[i] = update(KEYS[i], at)
  at = at + 12 + 2 * ARGV[at + 11]
end
return outcomes
