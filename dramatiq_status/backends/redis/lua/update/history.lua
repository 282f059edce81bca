-- The earlier runs of a message: the mirror of history.py, which describes their fields. A call whose updates all take
-- shortcuts does not need these functions.
local function define_history()
  -- Cut the stored text of an exception to its maximum size.
  local function cut_exception(text)
    if #text <= MAX_EXCEPTION_SIZE then return text end
    if text:sub(1, 9) ~= '{"type":"' or text:sub(-2) ~= '"}' or text:find('[^ -~]') then return nil end
    local kept = MAX_EXCEPTION_SIZE - 5
    local message = text:find('","message":"', 1, true)
    if message and message + 12 > kept then
      -- The type leaves no room for the message, so cut before the message, or within the type.
      kept = math.min(kept, message - 1)
    end
    -- Do not cut within an escape sequence.  The longest one has six characters.  A backslash begins an escape sequence
    -- only if the number of adjacent backslashes up to it is odd.
    local escape = kept
    while escape > kept - 5 and text:byte(escape, escape) ~= 92 do escape = escape - 1 end
    local begin = escape
    while text:byte(begin, begin) == 92 do begin = begin - 1 end
    local is_begun = escape > kept - 5 and (escape - begin) % 2 == 1
    if is_begun and (escape == kept or text:sub(escape + 1, escape + 1) == 'u') then kept = escape - 1 end
    return text:sub(1, kept) .. '..."}'
  end

  -- Make the name of the field of an earlier run.
  local function name_of(number)
    return string.format('h%d', number)
  end

  -- Append a run, and its exception if it has one, to the pairs to write. Return the new size of the list.
  local function put(written, size, number, text, exception, run_ended)
    exception = exception and run_ended and run_ended:sub(-3) == HAS_FAILED and cut_exception(exception)
    if exception and number == 1 then
      written[size + 1], written[size + 2] = 'x1', exception
      size = size + 2
    elseif exception then
      text = text .. ',' .. exception
    end
    written[size + 1], written[size + 2] = name_of(number), '[' .. text .. ']'
    return size + 2
  end

  -- Append the last run of a record to the pairs to write, and drop runs that are too old. Return the new size of the list.
  local function keep(key, old, attempts, requeued, written, size)
    local last = tonumber(old.attempts)
    if last < 1 then return size end
    local started_at, heartbeat_at, exception, run_ended
    if old.found then
      -- Another call would cost the start of a retry as much as all the rest of its history.
      started_at, heartbeat_at, exception, run_ended = unpack(old.found, 16, 19)
    else
      started_at, heartbeat_at, exception, run_ended = unpack(call('HMGET', key, 'S', 'H', 'x', 'N'))
    end
    local ended = run_ended
    if not ended then
      -- The end of a lost run is unknown, so its last heartbeat stands for it.
      ended = old.state == WORKING and not requeued and '[' .. (heartbeat_at or 'null') .. ',' .. LOST .. ']' or 'null'
    end
    local text = (started_at or 'null') .. ',' .. ended .. ',' .. (old.scheduled_at or 'null')
    if old.token and not requeued then
      -- If no enqueue has ended the run, the exception in the record may be the one of an earlier run.
      text, exception = text .. ',"' .. old.token .. '"', nil
    end
    for number = math.max(2, last - MAX_RUNS + 1), math.min(attempts - MAX_RUNS, last) do
      call('HDEL', key, name_of(number))
    end
    if last > 1 and last <= attempts - MAX_RUNS then return size end
    return put(written, size, last, text, exception, run_ended)
  end

  -- Return the names of the earlier runs that a record may have during the second run or a later one.
  local function names_of(attempts)
    local names = {'h1'}
    for number = math.max(2, attempts - MAX_RUNS + 1), attempts - 1 do names[#names + 1] = name_of(number) end
    return names
  end

  -- Drop old runs, but not the first one, until the others fit.
  local function fit(key, attempts)
    local names, size = names_of(attempts), 0
    if #names <= SMALL_HISTORY then return end
    local texts = call('HMGET', key, 'x1', unpack(names))
    for _, text in ipairs(texts) do size = size + (text and #text or 0) end
    for i = 2, #names do
      if size <= MAX_HISTORY_SIZE then return end
      call('HDEL', key, names[i])
      size = size - (texts[i + 1] and #texts[i + 1] or 0)
    end
  end

  -- Complete the end of a run from an enqueue. Return whether anything has changed (`complete_run` in history.py).
  local function complete(key, run_ended, exception, scheduled_at)
    local attempts = tonumber(call('HGET', key, 'A') or 0)
    local number = attempts - 1
    local text = call('HGET', key, name_of(number))
    while number > 1 and text and text:find('^%[[^,]+,%[[^,]+,' .. LOST .. '%],') do
      number = number - 1
      text = call('HGET', key, name_of(number))
    end
    local started_at = text and text:match('^%[([^,]+),null,null%]$')
    if not started_at then return false end
    local completed, written = started_at .. ',' .. run_ended .. ',' .. (scheduled_at or 'null'), {}
    if text == '[' .. completed .. ']' then return false end
    call('HSET', key, unpack(written, 1, put(written, 0, number, completed, exception, run_ended)))
    fit(key, attempts)
    return true
  end

  -- Return whether a run has lost its message to the run of a record, or to a run before that run.
  local function is_earlier(key, attempts, token)
    token = ',"' .. token .. '"]'
    for _, text in ipairs(call('HMGET', key, unpack(names_of(attempts)))) do
      if text and text:sub(-#token) == token then return true end
    end
    return false
  end

  return {keep = keep, fit = fit, complete = complete, is_earlier = is_earlier}
end
