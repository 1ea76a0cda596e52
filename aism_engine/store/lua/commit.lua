-- Write what was decided, all of it or nothing, and take its source off the queue in the same step.
--
-- KEYS[1] epoch: the token of the newest leader     KEYS[2] ledger: the id of the last commit
-- KEYS[3] source: the queue that was peeked         KEYS[4] oversized: where messages too large to read are moved
-- KEYS[5..] every key that is written or watched
--
-- ARGV[1] token    ARGV[2] id of this commit    ARGV[3] id of the commit before it
-- ARGV[4] types: one letter for each of KEYS[5..]: s(tring that is set in bulk) k(another string) l(ist) h(ash) z(sorted set)
--         x(stream) e(set), or * for any
-- ARGV[5] trim: how many messages leave the tail of the source; 0 for none
-- ARGV[6] digest of the oldest of them              ARGV[7] digest of the newest of them
-- ARGV[8] keep: 0, or the one message leaves for the list of the oversized, which keeps so many
-- ARGV[9] watches: how many sorted-set scores must not have moved
-- ARGV[10] strings: how many keys are set            ARGV[11] channels: how many are published to
-- then the watches, each: key, member, score
-- then the strings, each: key, value
-- then the channels, each: name, how many messages, the messages
-- then all other writes, each: command, key, how many arguments, the arguments
-- Three of those commands are our own, for what no one but the server has to read, the body in the record of a command:
--   RELEASE list, record                push it
--   WITHDRAW list, record, otherwise?   remove it from the list; where it is not there any more, push `otherwise`
--   FORWARD list, waiting               move all that lies in `waiting` to it, in order
-- A key is named by its place in KEYS, less 4. Strings and messages come in bulk because every change of a state has one of each.
--
-- Returns {code, details, length of the source left}:
--   APPLIED        1  written; the details are the places in ARGV of writes that failed: none can, short of a bug, for
--                     everything was checked
--   REPLAYED       2  this very commit was written before
--   FENCED        -1  another engine has led since
--   OUT_OF_STEP   -2  the ledger is neither this commit nor the one before it: another wrote, or the server went back in
--                     time
--   SOURCE_MOVED  -3  the tail of the source is not what was peeked
--   WRONG_TYPE    -4  the details are all keys that have a type other than their letter
--   SCORE_MOVED   -5  the details are all watches that failed, counted from 1
--
-- The first write is the ledger's: a server that refuses writes (OOM, MISCONF, READONLY) refuses there, with nothing written.
--#include digest

local names = {k = 'string', l = 'list', h = 'hash', z = 'zset', x = 'stream', e = 'set'}
local source = KEYS[3]
local trim, keep = tonumber(ARGV[5]), tonumber(ARGV[8])
local watches, sets, channels = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])

local ledger = redis.call('GET', KEYS[2])
if ledger == ARGV[2] then
  return {2, {}, redis.call('LLEN', source)}
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {-1, {}, 0}
end
if (ledger or '') ~= ARGV[3] then
  return {-2, {}, 0}
end

if trim > 0 then
  local oldest, newest = redis.call('LINDEX', source, -1), redis.call('LINDEX', source, -trim)
  if not newest or digest(oldest) ~= ARGV[6] or digest(newest) ~= ARGV[7] then
    return {-3, {}, 0}
  end
end

local strings, places, wrong = {}, {}, {}
for i = 5, #KEYS do
  local letter = string.sub(ARGV[4], i - 4, i - 4)
  if letter == 's' then
    strings[#strings + 1] = KEYS[i]
    places[#places + 1] = i - 4
  elseif letter ~= '*' then
    local kind = redis.call('TYPE', KEYS[i]).ok
    if kind ~= names[letter] and kind ~= 'none' then
      wrong[#wrong + 1] = i - 4
    end
  end
end
for i = 1, #strings, 1000 do
  local values = redis.call('MGET', unpack(strings, i, math.min(i + 999, #strings)))
  for j = 1, math.min(1000, #strings - i + 1) do
    local at = i + j - 1
    if not values[j] and redis.call('TYPE', strings[at]).ok ~= 'none' then  -- MGET says nil to another type, too
      wrong[#wrong + 1] = places[at]
    end
  end
end
if #wrong > 0 then
  return {-4, wrong, 0}
end

local a, moved = 12, {}
for i = 1, watches do
  local score = redis.call('ZSCORE', KEYS[4 + tonumber(ARGV[a])], ARGV[a + 1])
  if not score or tonumber(score) ~= tonumber(ARGV[a + 2]) then
    moved[#moved + 1] = i
  end
  a = a + 3
end
if #moved > 0 then
  return {-5, moved, 0}
end

local left = redis.call('LLEN', source) - trim  -- before the first write: it raises where the source is no list
redis.call('SET', KEYS[2], ARGV[2])

local assigned = a  -- the strings come after the other writes: one of those may delete a key that is set again
a = a + 2 * sets
local events = a  -- published last: whoever hears of a change finds it written
for _ = 1, channels do
  a = a + 2 + tonumber(ARGV[a + 1])
end

local failed = {}
local function write(place, ...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    failed[#failed + 1] = place
    redis.log(redis.LOG_WARNING, 'aism commit ' .. ARGV[2] .. ': ' .. (...) .. ': ' .. tostring(reply.err))
  end
end

local function body_of(place)
  return redis.call('HGET', KEYS[4 + tonumber(place)], 'body')
end

while a <= #ARGV do
  local last = a + 2 + tonumber(ARGV[a + 2])
  local command, key = ARGV[a], KEYS[4 + tonumber(ARGV[a + 1])]
  if command == 'RELEASE' then
    local body = body_of(ARGV[a + 3])
    if body then
      write(a, 'LPUSH', key, body)
    end
  elseif command == 'WITHDRAW' then
    local body = body_of(ARGV[a + 3])
    local removed = body and redis.call('LREM', key, 0, body) or 0
    if removed == 0 and last > a + 3 then
      write(a, 'LPUSH', key, ARGV[last])
    end
  elseif command == 'FORWARD' then
    local waiting = KEYS[4 + tonumber(ARGV[a + 3])]
    for _ = 1, redis.call('LLEN', waiting) do
      write(a, 'LMOVE', waiting, key, 'RIGHT', 'LEFT')
    end
  else
    write(a, command, key, unpack(ARGV, a + 3, last))
  end
  a = last + 1
end

for from = 1, sets, 1000 do
  local values = {}
  for _ = from, math.min(from + 999, sets) do
    values[#values + 1] = KEYS[4 + tonumber(ARGV[assigned])]
    values[#values + 1] = ARGV[assigned + 1]
    assigned = assigned + 2
  end
  write(assigned, 'MSET', unpack(values))
end

for _ = 1, channels do
  local last = events + 1 + tonumber(ARGV[events + 1])
  for i = events + 2, last do
    write(i, 'PUBLISH', ARGV[events], ARGV[i])
  end
  events = last + 1
end

if keep > 0 then
  redis.call('LMOVE', source, KEYS[4], 'RIGHT', 'LEFT')
  redis.call('LTRIM', KEYS[4], 0, keep - 1)
elseif trim > 0 then
  redis.call('LTRIM', source, 0, -(trim + 1))
end
return {1, failed, left}
