-- A function for each kind of update: the mirror of the functions of `apply` in update.py. A call whose updates all take
-- shortcuts does not need these functions.
local function define_kinds(record, moves)
  local read, renew, set_pairs = record.read, record.renew, record.set_pairs
  local move, rename = moves.move, moves.rename

  local function take()
    at = at + 1
    return ARGV[at - 1]
  end

  -- Note the value of a field on which the expiry, the index or the increment depends.
  local function note(new, name, text)
    if name == 'p' then
      new.progress = text
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

  local function enqueue(key)
    local old = read(key)
    local origin, generation, count = take(), take(), take()
    local first, last = at, at + 2 * count - 1
    at = last + 1
    local version = (old.version or 0) + 1
    local same = old.origin == origin
    if same and tonumber(generation) <= tonumber(old.generation) then
      local added = 0
      local new = {actor = old.actor, queue = old.queue}
      local run_ended, exception, scheduled_at
      for i = first, last, 2 do
        local name = ARGV[i]
        if name == 'N' then run_ended = ARGV[i + 1] end
        if name == 'x' then exception = ARGV[i + 1] end
        if name == 'D' then scheduled_at = ARGV[i + 1] end
        if name ~= 'D' and name ~= 'x' and name ~= 'it' and name ~= 'N' and name ~= 'p' and not record.is_deleted(key, name) then
          added = added + call('HSETNX', key, name, ARGV[i + 1])
          if name == 'a' and not new.actor then new.actor = ARGV[i + 1] end
          if name == 'Q' and not new.queue then new.queue = ARGV[i + 1] end
        end
      end
      if run_ended and generation + 0 == old.generation + 0 then
        if define_history().complete(key, run_ended, exception, scheduled_at) then added = added + 1 end
      end
      if added > 0 then
        call('HSET', key, 'v', version, 'U', now)
        rename(key, old, new)
        publish('PUBLISH', key, version)
      end
      return LATE
    end
    if same and old.finished and old.cancelled then return CANCELLED end
    if not same and old.state and old.origin ~= '0' and generation + 0 > 1 and not old.finished then return LATE end
    local scheduled_at, live_ttl = false, false
    local new = {actor = old.actor, queue = old.queue}
    if (same or old.origin == '0') and not old.finished then
      call('HDEL', key, 'r', 'q', 'D', 'R', 'W', 'H')
      call('HSET', key, 's', QUEUED, 'e', origin, 'n', generation, 'v', version, 'U', now)
      live_ttl = old.live_ttl
      for i = first, last, 2 do
        local name, text = ARGV[i], ARGV[i + 1]
        if name == 'D' or name == 'x' or name == 'it' or name == 'N' then
          call('HSET', key, name, text)
          if name == 'D' then scheduled_at = text end
        elseif not record.is_deleted(key, name) then
          call('HSETNX', key, name, text)
          if name == 'L' and not live_ttl then live_ttl = text end
          if name == 'a' and not new.actor then new.actor = text end
          if name == 'Q' and not new.queue then new.queue = text end
        end
      end
      if old.requested then
        -- The message does not run again.
        define_cancel(record, moves).cancel_waiting(key, old, new, renew(key, scheduled_at, live_ttl))
        publish('PUBLISH', key, version)
        return REQUESTED
      end
    else
      record.clear(key)
      new = {}
      for i = first, last, 2 do
        note(new, ARGV[i], ARGV[i + 1])
      end
      scheduled_at, live_ttl = new.scheduled_at, new.live_ttl
      if count + 0 < 1000 then
        call('HSET', key, 's', QUEUED, 'v', version, 'e', origin, 'n', generation, 'U', now, unpack(ARGV, first, last))
      else
        call('HSET', key, 's', QUEUED, 'v', version, 'e', origin, 'n', generation, 'U', now)
        set_pairs(key, ARGV, first, last)
      end
    end
    move(key, old, new, QUEUED, renew(key, scheduled_at, live_ttl))
    publish('PUBLISH', key, version)
    return APPLIED
  end

  -- `deleted` and `counts`: stored names to delete, and pairs of a stored name and a number to add; nil for most
  -- updates.  `to_total`: whether to set the progress to the total.  `uncounted`: whether a count was left out.
  local deleted, counts, to_total, uncounted

  -- Delete the fields that the present update deletes. The list of pairs to write has the update's fields already. Append
  -- the sums of its counts. If the update sets the progress to the total, append the total as the progress; if the
  -- total is unknown, append the progress as the total. Return the new size of the list.
  local function add_changes(key, written, size)
    local set = {}
    for i = 1, size, 2 do set[written[i]] = written[i + 1] end
    for _, name in ipairs(deleted) do call('HDEL', key, name) end
    for i = 1, #counts, 2 do
      local name = counts[i]
      local number = record.number_in(set[name] or call('HGET', key, name))
      local sum = number and number + counts[i + 1]
      if sum and math.abs(sum) < EXACT then
        written[size + 1], written[size + 2] = name, record.text_of(sum)
        set[name] = written[size + 2]
        size = size + 2
      else
        uncounted = true
      end
    end
    if to_total then
      -- The mirror of `at_total` in record.py.
      local total = set.t or call('HGET', key, 't')
      if total and (total == 'null' or not record.number_in(total)) then
        written[size + 1], written[size + 2] = 't', set.p or call('HGET', key, 'p') or '0'
      else
        written[size + 1], written[size + 2] = 'p', total or DEFAULT_TOTAL
      end
      size = size + 2
    end
    return size
  end

  -- Append the fields, the increment and the counts of the present update to the pairs to write. Return the new size of
  -- the list.
  local function add_fields(key, new, written, size, increment)
    local count = take()
    for i = at, at + 2 * count - 1, 2 do
      local name, text = ARGV[i], ARGV[i + 1]
      written[size + 1], written[size + 2] = name, text
      size = size + 2
      note(new, name, text)
    end
    at = at + 2 * count
    if increment ~= '0' then
      written[size + 1], written[size + 2] = 'p', record.text_of((tonumber(new.progress or 0) or 0) + increment)
      size = size + 2
    end
    return counts and add_changes(key, written, size) or size
  end

  local function skip_fields()
    at = at + 1 + 2 * ARGV[at]
  end

  local function finish(key, state, ttl)
    if state == COMPLETED then
      call('HDEL', key, 'D', 'R', 'W', 'H', 'x', 'it')
    else
      call('HDEL', key, 'D', 'R', 'W', 'H')
    end
    if ttl then call('PEXPIRE', key, ttl) end
  end

  local function whole_number_in(text)
    return text and #text < 16 and text:find('^%d+$') and text + 0 or 0
  end

  -- Return whether a run started before the run of a record, or in the same millisecond.
  local function is_outdated(key)
    local started_at
    for i = at + 1, at + 2 * ARGV[at], 2 do
      if ARGV[i] == 'S' then started_at = ARGV[i + 1] end
    end
    started_at = whole_number_in(started_at)
    return started_at > 0 and started_at <= whole_number_in(call('HGET', key, 'S'))
  end

  -- Return APPLIED if a run may write to a record; otherwise return the outcome of the refused update.
  local function standing(key, old, origin, generation, token, sequence, start, state)
    if not old.state then return MISSING end
    if token ~= '0' and old.token == token then
      if tonumber(sequence) <= tonumber(old.sequence) then return DUPLICATE end
      return old.finished and REFUSED or APPLIED
    end
    if not start and state == '' then return REFUSED end
    if old.origin ~= origin then
      return (start or token == '0') and not is_outdated(key) and MISSING or REFUSED
    end
    if old.finished and old.cancelled then return CANCELLED end
    local ahead = generation - old.generation
    if ahead < 0 then return REFUSED end
    if old.finished then return ahead == 0 and REFUSED or MISSING end
    local attempts = tonumber(old.attempts or 0)
    if start and old.token and ahead == 0 and attempts > 1 and define_history().is_earlier(key, attempts, token) then
      -- The start of an older run is sent again, because its reply was lost.
      return REFUSED
    end
    return (start or token == '0' or not old.token or ahead > 0) and APPLIED or REFUSED
  end

  local function transition(key)
    local origin, generation, token, sequence = take(), take(), take(), take()
    local start, create = take() == '1', take() == '1'
    local state, attempts, increment, ttl = take(), take(), take(), take()
    local old = read(key, start and attempts ~= '1')
    local outcome = standing(key, old, origin, generation, token, sequence, start, state)
    -- The start of a run may be stored although its reply is lost, and be sent again as part of a later update.
    start = start and old.token ~= token
    if outcome ~= APPLIED and not (outcome == MISSING and create) then
      skip_fields()
      if outcome == CANCELLED and state > WORKING then
        -- A worker drops the message.
        ttl = record.limited(ttl + 0)
        call('PEXPIRE', key, ttl)
        move(key, old, old, old.state, ttl)
      end
      return outcome
    end
    local version = (old.version or 0) + 1
    local written = {'v', version, 'U', now}
    local size = 4
    if start or create or state ~= '' then
      written[5], written[6], written[7], written[8] = 'e', origin, 'n', generation
      size = 8
    end
    local new = {
      actor = old.actor, queue = old.queue, scheduled_at = old.scheduled_at, live_ttl = old.live_ttl,
      progress = old.progress, state = old.state,
    }
    -- The number of a run that begins, and the functions of its history.
    local number, history
    if outcome == MISSING then
      record.clear(key)
      new = {state = WORKING}
      written[9], written[10] = 's', WORKING
      size = 10
      if token ~= '0' then
        written[11], written[12] = 'A', attempts
        size = 12
      end
    elseif start then
      number = math.max((tonumber(old.attempts or 0) or 0) + 1, attempts)
      written[9], written[10], written[11], written[12] = 's', WORKING, 'A', number
      size = 12
      if old.attempts then
        history = define_history()
        size = history.keep(key, old, number, generation - old.generation > 0, written, size)
      end
      call('HDEL', key, 'R', 'W', 'F', 'k', 'c', 'D', 'N', 'H')
      -- A progress that other messages have incremented before the first run stays.
      if old.attempts and old.progress then
        call('HDEL', key, 'p')
        new.progress = false
      end
      new.scheduled_at, new.state = false, WORKING
    end
    if token ~= '0' then
      written[size + 1], written[size + 2], written[size + 3], written[size + 4] = 'r', token, 'q', sequence
      size = size + 4
      if start or outcome == MISSING then
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
    if history then history.fit(key, number) end
    if state > WORKING then
      finish(key, state, ttl)
    else
      if state ~= '' then call('HDEL', key, 'F') end
      ttl = renew(key, new.scheduled_at, new.live_ttl)
    end
    if start or state ~= '' or outcome == MISSING then
      move(key, old, new, new.state, ttl)
    else
      rename(key, old, new)
    end
    publish('PUBLISH', key, version)
    return start and old.requested and outcome == APPLIED and not (state > WORKING) and REQUESTED or APPLIED
  end

  local function outside(key)
    local state, increment, ttl = take(), take(), take()
    local old = read(key)
    if not old.state then
      skip_fields()
      return MISSING
    end
    local version = old.version + 1
    local new = {
      actor = old.actor, queue = old.queue, scheduled_at = old.scheduled_at, live_ttl = old.live_ttl,
      progress = old.progress,
    }
    local written = {'v', version, 'U', now}
    local known, written_at = call('HMGET', key, 'R', 'W', 'U'), nil
    if known[1] and (not known[2] or known[2] == 'null') then written_at = record.rate_written_at(known[3]) end
    local size = add_fields(key, new, written, 4, increment)
    if state ~= '' then
      written[size + 1], written[size + 2] = 's', state
      size = size + 2
    end
    if written_at then
      written[size + 1], written[size + 2] = 'W', written_at
      size = size + 2
    end
    set_pairs(key, written, 1, size)
    if state == '' then
      if not old.finished then renew(key, new.scheduled_at, new.live_ttl) end
      rename(key, old, new)
      publish('PUBLISH', key, version)
      return APPLIED
    end
    if state > WORKING then
      call('HSETNX', key, 'F', now)
      -- The expiry of a record that was finished before stays.
      local own = old.status_ttl
      ttl = record.limited((own and #own < 16 and own:find('^%d+$') and own or ttl) + 0)
      finish(key, state, not old.finished and ttl)
      if old.finished then ttl = call('PTTL', key) end
    else
      call('HDEL', key, 'F')
      ttl = renew(key, new.scheduled_at, new.live_ttl)
    end
    move(key, old, new, state, ttl)
    publish('PUBLISH', key, version)
    return APPLIED
  end

  local function heartbeat(key)
    local token = take()
    local old = read(key)
    skip_fields()
    if not old.state then return MISSING end
    if old.token ~= token or old.finished then return REFUSED end
    call('HSET', key, 'H', now)
    renew(key, old.scheduled_at, old.live_ttl)
    return old.requested and call('HEXISTS', key, 'cs') == 0 and REQUESTED or APPLIED
  end

  local function remove(key, old)
    if old.state and ARGV[#ARGV] ~= '' then moves.unindex(key:sub(ARGV[#ARGV - 1] + 1), old) end
    if call('DEL', key) == 0 then return MISSING end
    publish('PUBLISH', key, 0)
    return APPLIED
  end

  local function delete(key)
    local old = read(key)
    skip_fields()
    return remove(key, old)
  end

  local function withdraw(key)
    local old, origin, generation = read(key), take(), take()
    skip_fields()
    if old.state ~= QUEUED or old.token or old.origin ~= origin or old.generation - generation ~= 0 then
      return REFUSED
    end
    return remove(key, old)
  end

  -- Take a number of arguments as a table: there may be more of them than fit into the Lua stack.
  local function take_many(number)
    local list = {}
    for i = at, at + number - 1 do list[#list + 1] = ARGV[i] end
    at = at + number
    return list
  end

  local function change(key)
    to_total = take() == '1'
    deleted = take_many(take() + 0)
    counts, uncounted = take_many(2 * take()), false
    local outcome = take() == TRANSITION and transition(key) or outside(key)
    deleted, counts = nil, nil
    return (outcome == APPLIED or outcome == REQUESTED) and uncounted and UNCOUNTED or outcome
  end

  return {
    [ENQUEUE] = enqueue, [TRANSITION] = transition, [HEARTBEAT] = heartbeat, [OUTSIDE_STATE] = outside,
    [DELETE] = delete, [CHANGES] = change, [WITHDRAWAL] = withdraw,
  }
end
