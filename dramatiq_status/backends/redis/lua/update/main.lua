-- The loop over the updates, with shortcuts for the most frequent ones: writes, enqueues, and starts of runs, alone or
-- with the end of the run.
--
-- Each function definition costs a call about 0.4 microseconds.  So the shortcuts are not functions, and the other
-- functions are defined when they are first used.

-- The functions of record.lua and of index.lua, and those of apply.lua by their kinds.
local record, moves, kinds
local outcomes = {}
for i = 1, #KEYS do
  local key, kind = KEYS[i], ARGV[at]
  local outcome = APPLIED
  at = at + 1
  if kind == WRITE or kind == OUTSIDE then
    -- Fields and an increment, without a transition.
    local from_run = kind == WRITE
    local token, sequence
    if from_run then
      token, sequence = ARGV[at], ARGV[at + 1]
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
    local state, version, generation, progress = old[1], old[2], old[4], old[9]
    local sound = not (old.err and is_foreign(old)) and (state == '1' or state == '2' or state == '0' or state == '3')
      and version and old[3] and generation and (old[6] or not old[5])
    if sound then
      local text = version .. generation .. (old[6] or '') .. (progress or '') .. (old[10] or '')
      if text:find('%D') or old[7] or old[8]
        or #text > 15 and (#version > 15 or #generation > 15 or #(old[6] or '') > 15 or #(progress or '') > 15 or #(old[10] or '') > 15)
        or version == '' or generation == '' or old[6] == '' or progress == '' or old[10] == ''
      then
        -- The values are not just short whole numbers, so check them one by one.
        record = record or define_record()
        sound = record.are_sound(version, generation, old[6], old[7], old[8], progress, old[10])
      end
    end
    if not sound then
      outcome = MISSING
    elseif from_run then
      if old[5] ~= token then
        outcome = REFUSED
      elseif tonumber(sequence) <= tonumber(old[6]) then
        outcome = DUPLICATE
      elseif state > WORKING then
        outcome = REFUSED
      end
    end
    if outcome == APPLIED then
      if old[11] and (not old[12] or old[12] == 'null') then
        -- The first write from outside of the run since the run stored its rate.
        record = record or define_record()
        call('HSET', key, 'W', record.rate_written_at(call('HGET', key, 'U')))
      end
      version = string.format('%d', version + 1)
      local scheduled_at, ttl = old[7], old[8] or LIVE_TTL_TEXT
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
          call('HSET', key, 'v', version, 'U', now, 'q', sequence, unpack(ARGV, first, last))
        else
          call('HSET', key, 'v', version, 'U', now, unpack(ARGV, first, last))
        end
      else
        call('HSET', key, 'v', version, 'U', now)
        if from_run then call('HSET', key, 'q', sequence) end
        record = record or define_record()
        record.set_pairs(key, ARGV, first, last)
      end
      if increment ~= '0' then
        local sum = (tonumber(progress or 0) or 0) + increment
        if sum % 1 == 0 and sum < EXACT and sum > -EXACT then
          call('HSET', key, 'p', string.format('%.0f', sum))
        else
          record = record or define_record()
          call('HSET', key, 'p', record.text_of(sum))
        end
      end
      if state < COMPLETED then
        if scheduled_at or ttl ~= LIVE_TTL_TEXT then
          record = record or define_record()
          ttl = record.limited(ttl + (scheduled_at and math.max(0, scheduled_at - now) or 0))
        end
        call('PEXPIRE', key, ttl)
      end
      publish('PUBLISH', key, version)
    end
  elseif kind == ENQUEUE and ARGV[at + 2] + 0 < 1000 and call('EXISTS', key) == 0 then
    -- An enqueue of a message without a record.
    local first, last = at + 3, at + 2 + 2 * ARGV[at + 2]
    local ttl, delay, queue, actor = LIVE_TTL, 0
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
    ttl = math.min(math.max(1, ttl + delay), LONGEST_TTL)
    call('HSET', key, 's', QUEUED, 'v', '1', 'e', ARGV[at], 'n', ARGV[at + 1], 'U', now, unpack(ARGV, first, last))
    call('PEXPIRE', key, ttl == LIVE_TTL and LIVE_TTL_TEXT or ttl)
    if ARGV[#ARGV] ~= '' then index(key:sub(ARGV[#ARGV - 1] + 1), QUEUED, '', queue, actor, ttl) end
    publish('PUBLISH', key, '1')
    at = last + 1
  else
    local done = false
    if kind == TRANSITION and ARGV[at + 4] == '1' and (ARGV[at + 6] == '' or ARGV[at + 6] > WORKING)
      and ARGV[at + 8] == '0' and ARGV[at + 10] + 0 < 1000
    then
      -- The start of a run after its own enqueue, or its start and its end in one update.
      local token, sequence, state, attempts = ARGV[at + 2], ARGV[at + 3], ARGV[at + 6], ARGV[at + 7]
      local ends, old = state ~= '', redis.pcall('HMGET', key, 's', 'v', 'e', 'n', 'D', 'L', 'a', 'Q')
      local version, generation, scheduled_at, live_ttl, actor, queue = old[2], old[4], old[5], old[6], old[7], old[8]
      -- Version 1 of a record has only the fields of the first enqueue: none of a run, and no request to cancel. To read
      -- and to delete fields of a run as well would take the server a sixth more instructions.
      local is_first, more = version == '1' and generation == '1', {}
      if not is_first then more = redis.pcall('HMGET', key, 'r', 'q', 'p', 'A', 'C', 'S', 'x', 'N') end
      local progress, earlier, exception = more[3], more[4], more[7]
      local numbers = (scheduled_at or '0') .. (live_ttl or '0') .. (progress or '0') .. (earlier or '0')
      if old[1] == QUEUED and version and old[3] == ARGV[at] and generation == ARGV[at + 1] and token ~= '0'
        and not (more[1] or more[2] or not ends and more[5])
        and #version < 16 and #generation < 16 and #(scheduled_at or '0') < 16 and #(live_ttl or '0') < 16
        and #(progress or '0') < 16
        and version ~= '' and generation ~= '' and scheduled_at ~= '' and live_ttl ~= '' and progress ~= ''
        and not (version .. generation .. numbers):find('%D')
        -- The functions of history.lua cut long exceptions, and drop runs from a history that is not small.
        and (not earlier and attempts == '1' or earlier and #earlier == 1 and earlier > '0' and earlier + 0 <= SMALL_HISTORY
          and attempts - earlier == 1 and #(exception or '') <= MAX_EXCEPTION_SIZE)
      then
        done = true
        local ttl = ARGV[at + 9]
        local old_set = '0\n\n' .. (queue or '') .. '\n' .. (actor or '')
        version = string.format('%d', version + 1)
        local new = ends and state or WORKING
        local written, size = {'s', new, 'v', version, 'U', now, 'A', attempts, 'r', token, 'q', sequence}, 12
        if not ends then
          written[13], written[14] = 'H', now
          size = 14
        end
        if earlier then
          local ended, last_exception = more[8] or 'null', ''
          if exception and ended:sub(-3) == HAS_FAILED then
            if earlier == '1' then
              written[size + 1], written[size + 2] = 'x1', exception
              size = size + 2
            else
              last_exception = ',' .. exception
            end
          end
          written[size + 1] = 'h' .. earlier
          written[size + 2] = '[' .. (more[6] or 'null') .. ',' .. ended .. ',' .. (scheduled_at or 'null') .. last_exception .. ']'
          size = size + 2
        end
        -- The progress of the earlier run is deleted.
        local of_run = earlier and 'p' or 'N'
        if is_first then
          if scheduled_at then call('HDEL', key, 'D') end
        elseif not ends then
          call('HDEL', key, 'R', 'W', 'F', 'k', 'c', 'D', 'N', of_run)
        elseif state == COMPLETED then
          call('HDEL', key, 'R', 'W', 'F', 'k', 'c', 'D', 'N', of_run, 'H', 'x', 'it')
        else
          call('HDEL', key, 'R', 'W', 'F', 'k', 'c', 'D', 'N', of_run, 'H')
        end
        scheduled_at = nil
        local first, last = at + 11, at + 10 + 2 * ARGV[at + 10]
        for j = first, last, 2 do
          local name = ARGV[j]
          -- The end of a run deletes some of the fields that the run has set.
          if not ends or not (name == 'D' or name == 'R' or name == 'W' or name == 'H')
            and not (state == COMPLETED and (name == 'x' or name == 'it'))
          then
            written[size + 1], written[size + 2] = name, ARGV[j + 1]
            size = size + 2
            if name == 'a' then
              actor = ARGV[j + 1]
            elseif name == 'Q' then
              queue = ARGV[j + 1]
            elseif name == 'L' then
              live_ttl = ARGV[j + 1]
            elseif name == 'D' then
              scheduled_at = ARGV[j + 1]
            end
          end
        end
        at = last + 1
        call('HSET', key, unpack(written, 1, size))
        if not ends then
          ttl = live_ttl or LIVE_TTL_TEXT
          if scheduled_at or ttl ~= LIVE_TTL_TEXT then
            ttl = math.min(math.max(1, ttl + math.max(0, (scheduled_at or now) - now)), LONGEST_TTL)
          end
        end
        call('PEXPIRE', key, ttl)
        if ARGV[#ARGV] ~= '' then
          local id = key:sub(ARGV[#ARGV - 1] + 1)
          redis.pcall('ZREM', ARGV[#ARGV] .. old_set, id)
          index(id, new, not ends and '' or nil, queue, actor, ends and ttl or ttl + 0)
        end
        publish('PUBLISH', key, version)
      end
    end
    if not done then
      record, moves = record or define_record(), moves or define_moves()
      if kind == CANCEL then
        outcome = define_cancel(record, moves).cancel(key)
      else
        kinds = kinds or define_kinds(record, moves)
        outcome = kinds[kind](key)
      end
    end
  end
  if unlisted then
    outcome, unlisted = outcome + UNLISTED, false
  end
  outcomes[i] = outcome
end
return outcomes
