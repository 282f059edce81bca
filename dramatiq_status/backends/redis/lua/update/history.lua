-- The history of a message's runs: `add_run` in history.py, which describes its format. A call with shortcuts only does
-- not need these functions.
local function define_history()
  local function time_in(text)
    return text and #text < 16 and text:find('^%d+$') and text or 'null'
  end

  -- Cut the stored text of an exception to its maximum size.
  local function cut_exception(text)
    if text:sub(1, 9) ~= '{"type":"' or text:sub(-2) ~= '"}' or text:find('[^ -~]') then return 'null' end
    if #text <= MAX_EXCEPTION_SIZE then return text end
    local kept = MAX_EXCEPTION_SIZE - 5
    local message = text:find('","message":"', 1, true)
    if message and message + 12 > kept then
      -- The type leaves no room for the message: cut before the message, or within the type.
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

  -- Make the part of an item that begins with the run's end, nil if the end is unknown.
  local function end_of(run_ended, exception, scheduled_at)
    local ended_at, outcome = (run_ended or ''):match('^%[(%d+),([01])%]$')
    if not ended_at or #ended_at > 15 then return nil end
    local raised = outcome == RETRIED and cut_exception(exception or 'null') or 'null'
    return ended_at .. ',' .. outcome .. ',' .. raised .. ',' .. time_in(scheduled_at) .. ']'
  end

  -- Make the item of a record's last run.
  local function item_of(old, started_at, heartbeat_at, exception, run_ended, requeued)
    local begin = '[' .. old.attempts .. ',' .. time_in(started_at) .. ','
    local ended = end_of(run_ended, exception, old.scheduled_at)
    if ended then return begin .. ended end
    local ended_at, outcome
    if old.state == WORKING and not requeued then
      -- The time of the last heartbeat stands for the unknown end.
      ended_at, outcome = time_in(heartbeat_at), LOST
    else
      ended_at, outcome = 'null', REQUEUED
    end
    return begin .. ended_at .. ',' .. outcome .. ',null,' .. time_in(old.scheduled_at) .. ']'
  end

  local function runs_in(history)
    local runs = {}
    history = history or ''
    if history:sub(1, 2) == '[[' and history:sub(-2) == ']]' then
      for run in (history:sub(2, -2) .. ',\t'):gmatch('(.-),\t') do
        runs[#runs + 1] = run
      end
    end
    return runs
  end

  local function text_of(runs)
    local size = 0
    for _, run in ipairs(runs) do size = size + #run + 2 end
    while #runs > MAX_RUNS or #runs > 1 and size > MAX_HISTORY_SIZE do
      size = size - 2 - #table.remove(runs, math.min(2, #runs - 1))
    end
    return '[' .. table.concat(runs, ',\t') .. ']'
  end

  -- Return the history of a record whose next run begins.
  local function add(key, old, requeued)
    local started_at, heartbeat_at, exception, run_ended, history
    if old.found then
      -- Another call would cost the start of a retry as much as all the rest of its history.
      started_at, heartbeat_at, exception, run_ended, history = unpack(old.found, 16, 20)
    else
      started_at, heartbeat_at, exception, run_ended, history = unpack(call('HMGET', key, 'S', 'H', 'x', 'N', 'h'))
    end
    local item = item_of(old, started_at, heartbeat_at, exception, run_ended, requeued)
    if not history then return '[' .. item .. ']' end
    local runs = runs_in(history)
    runs[#runs + 1] = item
    return text_of(runs)
  end

  -- Return the history with the end of the run that an enqueue contains; nil if the history stays unchanged
  -- (`complete_run` in history.py).
  local function complete(key, run_ended, exception, scheduled_at)
    local runs = runs_in(call('HGET', key, 'h'))
    local last = #runs
    while last > 1 and runs[last]:find('^%[[^,]+,[^,]+,[^,]+,' .. LOST .. ',') do last = last - 1 end
    local attempt, started_at = (runs[last] or ''):match('^%[(%d+),(%w+),null,' .. REQUEUED .. ',null,null%]$')
    if not attempt or #attempt > 15 or started_at ~= 'null' and time_in(started_at) == 'null' then return nil end
    local ended = end_of(run_ended, exception, scheduled_at)
    if not ended then return nil end
    runs[last] = '[' .. attempt .. ',' .. started_at .. ',' .. ended
    return text_of(runs)
  end

  return {add = add, complete = complete}
end
