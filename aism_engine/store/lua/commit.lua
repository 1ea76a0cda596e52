-- Apply a batch of decisions and remove its messages from their queue: all of it, or nothing.
--
-- KEYS[1]   epoch: the fencing token of the newest leader
-- KEYS[2]   ledger: the id of the last commit
-- KEYS[3]   source: the queue that the batch was peeked from
-- KEYS[4]   oversized: the list that keeps messages too large to read
-- KEYS[5..] every key that is read, written or watched. The arguments refer to KEYS[5] as key 1. The last of these keys are
--           the strings: the states and records of agents, which are set to the values in ARGV.
--
-- ARGV[1]   fencing token of the sender
-- ARGV[2]   id of this commit
-- ARGV[3]   id of the commit before it, '' for the first one
-- ARGV[4]   types: one letter for each of KEYS[5..] but the strings: s (string), l (list), h (hash), z (sorted set), x (stream),
--           e (set), * (any type)
-- ARGV[5]   trim: number of messages to remove from the tail of the source; 0 for none
-- ARGV[6]   digest of the oldest of them
-- ARGV[7]   digest of the newest of them
-- ARGV[8]   keep: 0 to drop the trimmed messages. Otherwise the trim must be 1: its message moves to KEYS[4], and `keep` is
--           the maximum length of KEYS[4]
-- ARGV[9]   number of watches
-- ARGV[10]  number of writes
-- ARGV[11]  number of strings: that many keys at the end of KEYS
-- ARGV[12]  number of channels
-- ARGV[13..] in this order:
--   watches   key, member, score that the member of the sorted set must have
--   writes    command, key, number of arguments, arguments
--   strings   the values, in the order of their keys, each followed by a line break
--   channels  name, and the messages, each followed by a line break
--
-- Many values in one argument cost the sender a fraction of what many arguments cost.
--
-- Four commands of a write are our own. RELEASE, WITHDRAW and FORWARD use data that is in the server already. For RELEASE
-- and WITHDRAW, the body is the field `body` of the record:
--   RELEASE list, record                 push the body to the list
--   WITHDRAW list, record[, notice]      remove the body from the list; if the list does not contain it, OVERTAKE with the notice
--   FORWARD list, waiting                move every element of `waiting` to the list, oldest first
--   OVERTAKE list, body                  push the body to the tail of the list, so that the agent pops it next
--
-- Returns {code, details}:
--   APPLIED       1   written; details are positions in ARGV of writes that failed, which only a bug can cause
--   REPLAYED      2   this commit was applied before
--   FENCED       -1   another engine has taken the lease since
--   OUT_OF_STEP  -2   the ledger is neither this commit nor the one before it: another engine wrote, or the server lost its latest writes
--   SOURCE_MOVED -3   the tail of the source is not what was peeked
--   WRONG_TYPE   -4   details are the keys of another type than ARGV[4] says, and the keys of strings that hold another type
--   SCORE_MOVED  -5   details are the watches that failed, counted from 1
--
-- Redis does not roll back, so every check comes before the first write. The first write is the ledger's: a server that
-- refuses writes (OOM, MISCONF, READONLY) refuses that one, and nothing is written.
--#include digest

local code = {
  APPLIED = 1, REPLAYED = 2, FENCED = -1, OUT_OF_STEP = -2, SOURCE_MOVED = -3, WRONG_TYPE = -4, SCORE_MOVED = -5,
}
local type_names = {s = 'string', l = 'list', h = 'hash', z = 'zset', x = 'stream', e = 'set'}
local FIXED_KEYS = 4
local CHUNK = 1000  -- unpack fails with more than about 8,000 values

local position = 0
local function next_argument()
  position = position + 1
  return ARGV[position]
end
local function next_key()
  position = position + 1
  return KEYS[FIXED_KEYS + ARGV[position]]
end
local function next_arguments(count)
  local first = position + 1
  position = position + count
  return unpack(ARGV, first, position)
end

local function each_line(text)
  local start = 1
  return function()
    local stop = string.find(text, '\n', start, true)
    if stop then
      local line = string.sub(text, start, stop - 1)
      start = stop + 1
      return line
    end
  end
end

local epoch, ledger, source, oversized = unpack(KEYS, 1, FIXED_KEYS)
local token, commit_id, previous_id, types = next_arguments(4)
local trim, oldest_digest, newest_digest, keep = next_arguments(4)
local watch_count, write_count, string_count, channel_count = next_arguments(4)
trim, keep = tonumber(trim), tonumber(keep)
local first_string = #KEYS - string_count + 1

local last_id = redis.call('GET', ledger) or ''
if last_id == commit_id then
  return {code.REPLAYED, {}}
end
if redis.call('GET', epoch) ~= token then
  return {code.FENCED, {}}
end
if last_id ~= previous_id then
  return {code.OUT_OF_STEP, {}}
end

redis.call('LLEN', source)  -- raises WRONGTYPE if the source is not a list
if trim > 0 then
  local oldest, newest = redis.call('LINDEX', source, -1), redis.call('LINDEX', source, -trim)
  if not newest or digest(oldest) ~= oldest_digest or digest(newest) ~= newest_digest then
    return {code.SOURCE_MOVED, {}}
  end
end

local wrong = {}
for number = 1, #types do
  local type_code = string.sub(types, number, number)
  if type_code ~= '*' then
    local found = redis.call('TYPE', KEYS[FIXED_KEYS + number]).ok
    if found ~= type_names[type_code] and found ~= 'none' then
      wrong[#wrong + 1] = number
    end
  end
end
for first = first_string, #KEYS, CHUNK do  -- one MGET is cheaper than a TYPE for each
  local last = math.min(first + CHUNK - 1, #KEYS)
  local values = redis.call('MGET', unpack(KEYS, first, last))
  for i = first, last do
    -- MGET returns nil for an absent key and for a key of another type.
    if not values[i - first + 1] and redis.call('TYPE', KEYS[i]).ok ~= 'none' then
      wrong[#wrong + 1] = i - FIXED_KEYS
    end
  end
end
if #wrong > 0 then
  return {code.WRONG_TYPE, wrong}
end

local moved = {}
for i = 1, watch_count do
  local score = redis.call('ZSCORE', next_key(), next_argument())
  local expected = next_argument()
  if not score or tonumber(score) ~= tonumber(expected) then
    moved[#moved + 1] = i
  end
end
if #moved > 0 then
  return {code.SCORE_MOVED, moved}
end

redis.call('SET', ledger, commit_id)

local failed = {}
local function check(reply, command)
  if type(reply) == 'table' and reply.err then
    failed[#failed + 1] = position
    redis.log(redis.LOG_WARNING, 'aism commit ' .. commit_id .. ': ' .. command .. ': ' .. tostring(reply.err))
  end
end
local function try(command, ...)
  check(redis.pcall(command, ...), command)
end

local function overtake(list, body)
  try('LPUSH', list, body)
  try('LMOVE', list, list, 'LEFT', 'RIGHT')  -- RPUSH would need one more permission
end

for _ = 1, write_count do
  local command = next_argument()
  local key = next_key()
  local argument_count = next_argument()
  if command == 'RELEASE' then
    local body = redis.call('HGET', next_key(), 'body')
    if body then
      try('LPUSH', key, body)
    end
  elseif command == 'WITHDRAW' then
    local body = redis.call('HGET', next_key(), 'body')
    local notice = tonumber(argument_count) > 1 and next_argument()
    local removed = body and redis.call('LREM', key, 0, body) or 0
    if removed == 0 and notice then
      overtake(key, notice)
    end
  elseif command == 'OVERTAKE' then
    overtake(key, next_argument())
  elseif command == 'FORWARD' then
    local waiting = next_key()
    for _ = 1, redis.call('LLEN', waiting) do
      try('LMOVE', waiting, key, 'RIGHT', 'LEFT')
    end
  else
    try(command, key, next_arguments(argument_count))
  end
end

-- The strings follow the other writes, because one of those may delete a key that is set again.
local next_string = each_line(next_argument())
for first = first_string, #KEYS, CHUNK do
  local keys_and_values, n = {}, 0
  for i = first, math.min(first + CHUNK - 1, #KEYS) do
    keys_and_values[n + 1], keys_and_values[n + 2] = KEYS[i], next_string()
    n = n + 2
  end
  try('MSET', unpack(keys_and_values))
end

-- Events come last: a subscriber that receives one finds the change written.
for _ = 1, channel_count do
  local channel = next_argument()
  for message in each_line(next_argument()) do
    check(redis.pcall('PUBLISH', channel, message), 'PUBLISH')
  end
end

if keep > 0 then
  redis.call('LMOVE', source, oversized, 'RIGHT', 'LEFT')
  redis.call('LTRIM', oversized, 0, keep - 1)
elseif trim > 0 then
  redis.call('LTRIM', source, 0, -(trim + 1))
end
return {code.APPLIED, failed}
