-- Requests to cancel messages: the mirror of `_apply_cancel` in update.py. Of the other updates, only the enqueue
-- of a message with a request to cancel it needs these functions.
local function define_cancel(record, moves)
  -- End a message that waits. Its record lives for `ttl` milliseconds.
  local function cancel_waiting(key, old, new, ttl)
    call('HDEL', key, 'D', 'R', 'W', 'H')
    call('HSET', key, 's', FAILED, 'c', 'true', 'F', now)
    moves.move(key, old, new, FAILED, ttl)
  end

  local function cancel(key)
    local old = record.read(key)
    local log, mark, count = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local first, last = at + 3, at + 2 + 2 * count
    at = last + 1
    if not old.state then return MISSING end
    if old.finished and not old.cancelled then return REFUSED end
    if log ~= '' then
      -- Without the log, workers find the request in the outcomes of the starts of runs and of heartbeats.
      redis.pcall('XADD', log, 'MAXLEN', '~', MAX_LOGGED, '*', 'm', mark)
      redis.pcall('PEXPIRE', log, LOG_TTL)
      publish('PUBLISH', log, 1)
    end
    if old.finished then return CANCELLED end
    if old.state == WORKING and old.requested then return REQUESTED end
    local version = old.version + 1
    local known = call('HMGET', key, 'R', 'W', 'U')
    if old.state == WORKING and known[1] and (not known[2] or known[2] == 'null') then
      -- The first write from outside of the run since the run stored its rate.
      call('HSET', key, 'W', record.rate_written_at(known[3]))
    end
    if count + 0 > 0 then call('HSET', key, unpack(ARGV, first, last)) end
    call('HSET', key, 'v', version, 'U', now, 'C', now)
    if old.state == WORKING then
      record.renew(key, old.scheduled_at, old.live_ttl)
    else
      -- The record keeps its expiry: the message stays in its queue.
      cancel_waiting(key, old, old, call('PTTL', key))
    end
    publish('PUBLISH', key, version)
    return old.state == WORKING and REQUESTED or APPLIED
  end

  return {cancel = cancel, cancel_waiting = cancel_waiting}
end
