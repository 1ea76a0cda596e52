-- Read the oldest messages of a queue, and take nothing away.
--
-- KEYS[1]  the queue: a list, pushed at its head, read from its tail           KEYS[2]  ledger: the id of the last commit
-- ARGV[1]  most messages           ARGV[2]  most bytes of them all; the first message is given whatever its size
-- ARGV[3]  most bytes of one message  ARGV[4]  skip: how many of the oldest to leave out, being in hand already
--
-- Returns {seconds, microseconds, length, oversized, ledger, message, ...}: Redis TIME, the length of the queue, then the messages, oldest first.
-- oversized is '' or, where the oldest message exceeds ARGV[3], its digest: then the one message that follows is only its head, and
-- the length of it all stands behind the colon of the digest. An oversized message ends a batch and is never part of one.
--
-- One LINDEX each: no list command tells the size of an element, and an LRANGE of 512 messages of 1 MB would be 512 MB.
--#include digest

local queue = KEYS[1]
local most, bytes, limit, skip = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local length = redis.call('LLEN', queue)
local found = {time[1], time[2], length, '', redis.call('GET', KEYS[2]) or ''}

for i = 1, math.min(most, length - skip) do
  local message = redis.call('LINDEX', queue, -(skip + i))
  if #message > limit then
    if i == 1 then
      found[4] = digest(message)
      found[6] = string.sub(message, 1, 4096)
    end
    break
  end
  bytes = bytes - #message
  if bytes < 0 and i > 1 then
    break
  end
  found[5 + i] = message
end
return found
