-- Reading and writing of records. A call whose updates all take shortcuts does not need these functions.
local function define_record()
  -- Limit a time to live to what PEXPIRE takes (`limited_ttl` in record.py).
  local function limited(ttl)
    return math.min(math.max(1, ttl), LONGEST_TTL)
  end

  -- Return whether these texts, except for missing ones, are numbers as `is_sound` in record.py requires: the progress
  -- may be any number, and the others must be whole numbers of up to 15 digits. tonumber() accepts '0x10', ' 1' and
  -- 'nan' as well.
  local function are_sound(version, generation, sequence, scheduled_at, live_ttl, progress, attempts)
    local whole = version .. ' ' .. generation .. ' ' .. (sequence or 0) .. ' ' .. (scheduled_at or 0) .. ' '
      .. (live_ttl or 0) .. ' ' .. (attempts or 0)
    return whole:find('^%-?%d+ %-?%d+ %-?%d+ %-?%d+ %-?%d+ %-?%d+$')
      and (#whole < 26 or not whole:find(('%d'):rep(16)))
      and (not progress or progress:find('^%-?%d+%.?%d*[eE]?[+-]?%d*$') and math.abs(tonumber(progress) or math.huge) < math.huge)
  end

  -- Return the value of W after a write from outside of the run: the time of the run's last write.
  local function rate_written_at(updated_at)
    return updated_at and updated_at:find('^%d+$') and updated_at or '0'
  end

  -- Set the pairs list[first..last], in pieces that fit into the Lua stack.
  local function set_pairs(key, list, first, last)
    while first < last do
      local piece = math.min(last, first + 1999)
      call('HSET', key, unpack(list, first, piece))
      first = piece + 1
    end
  end

  -- Write a number as `number_text` in record.py does.
  local function text_of(number)
    if number == math.floor(number) and math.abs(number) < EXACT then
      return string.format('%.0f', number)
    end
    return string.format('%.17g', number)
  end

  -- Read the number to which a count is added; 0 where there is none, nil for other values (`count_on` in record.py).
  local function number_in(text)
    if not text or text == 'null' then return 0 end
    if #text > 40 or not (text:find('^%-?%d+$') or text:find('^%-?%d+%.%d+$') or text:find('^%-?%d+[eE][+-]?%d+$')
      or text:find('^%-?%d+%.%d+[eE][+-]?%d+$')) then return nil end
    local number = tonumber(text)
    return number and math.abs(number) < EXACT and number
  end

  -- Renew the expiry of an unfinished record (`live_ttl_of` in record.py), and return its time to live.
  local function renew(key, scheduled_at, live_ttl)
    local ttl = (live_ttl or LIVE_TTL) + 0
    if scheduled_at then
      ttl = ttl + math.max(0, scheduled_at - now)
    end
    ttl = limited(ttl)
    call('PEXPIRE', key, ttl)
    return ttl
  end

  -- Read the library's own fields of a record. The result is empty where the key has no sound record (`is_sound` in
  -- record.py). `is_retry`: whether to read also the fields from which the history of the last run is made.
  local function read(key, is_retry)
    local found = is_retry
      and redis.pcall('HMGET', key, 's', 'v', 'e', 'n', 'r', 'q', 'D', 'L', 'p', 'A', 'T', 'a', 'Q', 'c', 'C', 'S', 'H', 'x', 'N')
      or redis.pcall('HMGET', key, 's', 'v', 'e', 'n', 'r', 'q', 'D', 'L', 'p', 'A', 'T', 'a', 'Q', 'c', 'C')
    local state = found[1]
    if is_foreign(found) or not state then return {} end
    if (state == '0' or state == '1' or state == '2' or state == '3') and found[2] and found[3] and found[4]
      and (not found[5] or found[6])
      and are_sound(found[2], found[4], found[6], found[7], found[8], found[9], found[10])
    then
      return {
        state = state, version = found[2], origin = found[3], generation = found[4], token = found[5],
        sequence = found[6], scheduled_at = found[7], live_ttl = found[8], progress = found[9], attempts = found[10],
        status_ttl = found[11], actor = found[12], queue = found[13], cancelled = found[14],
        requested = found[15], finished = state > WORKING, found = is_retry and found,
      }
    end
    return {}
  end

  -- Remove what a key has, to make room for a new record. If the key has no value, the script does not call DEL. DEL
  -- would be its first write, and after the first write Redis no longer refuses the other writes of a script when it is
  -- out of memory. The state of a record stays until it is replaced: on a cluster, a key of a moving slot cannot be
  -- created again on this node once it is gone.
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

  -- Return whether a user's field was deleted. An enqueue does not bring it back (DELETED_PREFIX in record.py).
  local function is_deleted(key, name)
    return name:sub(1, 1) == ':' and call('HEXISTS', key, '-' .. name) == 1
  end

  return {
    limited = limited, are_sound = are_sound, rate_written_at = rate_written_at, set_pairs = set_pairs,
    text_of = text_of, number_in = number_in, renew = renew, read = read, clear = clear, is_deleted = is_deleted,
  }
end
