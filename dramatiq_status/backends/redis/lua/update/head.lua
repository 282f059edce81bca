-- Applies updates to records inside Redis: the mirror of `apply` in update.py.
--
-- The script consists of head.lua, index.lua, record.lua, history.lua, cancel.lua, apply.lua and main.lua, joined in this
-- order. Stored names ('s' for the state, 'v' for the version, ...) are those of record.py.
--
-- KEYS[i]: the hash of the i-th update's message. On a cluster all keys share a slot.
-- ARGV[1]: the time in epoch milliseconds; '' for the server's own clock.
-- ARGV[2..]: for each update its wire kind, the arguments of this kind (below), the number of its fields, and as many
--   pairs of a stored name and a JSON text.
-- ARGV[#ARGV-3..#ARGV]: arguments of the index, if one of the updates is of another kind than WRITE, OUTSIDE and
--   HEARTBEAT: the time in microseconds, '' for the server's own clock; the maximum number of messages of a set; the
--   length of the part of a key before the message's id; the prefix of the index's keys, '' for no index.
-- Returns the outcome of each update.  UNLISTED is added to the outcome if the message could not be added to the index,
-- because keys of the index are already on the node to which the slot moves.
--
-- The script publishes each new version on the channel with the key's name, and 0 for a delete.
-- Numbers are compared as numbers and tokens as texts. Other texts are never decoded.
--
-- A script call with one write takes the server 16.5 microseconds, and 25 to 30 without the shortcuts in main.lua.

-- The client replaces the names of these constants by their values when it loads the script (Script.load in script.py).

-- Wire kinds, and the arguments of each (WireKind in protocol.py has the same names and numbers).
-- An enqueue: origin, generation.
local ENQUEUE = '0'
-- A run's update with a transition, or with another actor or queue: origin, generation, run token (0: none), sequence,
-- start (1 or 0), create (1 or 0), state ('': none), attempts, increment, ttl.
local TRANSITION = '1'
-- An update from outside of a run, without a state, an actor and a queue: increment.
local OUTSIDE = '2'
-- A heartbeat: run token.
local HEARTBEAT = '3'
-- A run's update without a transition, an actor and a queue: run token, sequence, increment.
local WRITE = '4'
-- An update from outside of a run, with a state ('': none), an actor or a queue: state, increment, ttl.
local OUTSIDE_STATE = '5'
-- The deletion of a message.
local DELETE = '6'
-- Changes of the update that follows, which is a TRANSITION or an OUTSIDE_STATE even if it has no state: whether to set
-- the progress to the total (1 or 0), number of fields to delete, their stored names, number of fields to increment,
-- pairs of a stored name and an increment.
local CHANGES = '7'
-- A request to cancel the message: the key of the log of cancelled messages, '' for none; the message's mark.
local CANCEL = '8'
-- The end of an enqueue in an error: origin, generation.
local WITHDRAWAL = '9'

-- Outcomes (Outcome in update.py has the same names and numbers).
local APPLIED = 1
local LATE = 2
local DUPLICATE = 3
local REFUSED = 4
local MISSING = 5
local UNCOUNTED = 7
local CANCELLED = 9
local REQUESTED = 10
-- Number that the script adds to the outcome of an update whose message it could not add to the index.
local UNLISTED = 20

-- States. Those after WORKING are final.
local QUEUED = '0'
local WORKING = '1'
local COMPLETED = '2'
local FAILED = '3'

-- Total of a progress whose total was never set.
local DEFAULT_TOTAL = '100'

-- Default of a record's live_ttl, in milliseconds.
local LIVE_TTL = 604800000
-- This default as a text: a command takes 0.3 microseconds longer with a number, because Redis makes a text of it.
local LIVE_TTL_TEXT = '604800000'
-- Longest time to live, in milliseconds: a hundred years. PEXPIRE fails if the sum with the present time overflows.
local LONGEST_TTL = 3155760000000
-- Maximum number of marks in the log of cancelled messages, and its time to live in milliseconds.
local MAX_LOGGED = 100000
local LOG_TTL = 2592000000
-- Magnitude below which Lua's numbers count exactly: 2^53.
local EXACT = 9007199254740992

-- The history of runs (history.py has the same constants).
local MAX_RUNS = 10
local MAX_HISTORY_SIZE = 4096
local SMALL_HISTORY = 7
local MAX_EXCEPTION_SIZE = 512
local HAS_FAILED = ',1]'
local LOST = '2'

local call = redis.call
-- A login without the permission to publish can still store statuses.
local publish = redis.pcall

-- Return whether a reply is the error for a key that holds another type of value. Every other error is raised: a record
-- that cannot be read is not missing.
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

-- Index of the next argument in ARGV.
local at = 2
