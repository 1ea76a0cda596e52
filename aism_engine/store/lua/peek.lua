-- Read the oldest messages of a queue without removing them.
--
-- KEYS[1]  queue: a list, pushed at its head and read from its tail
-- KEYS[2]  ledger: the id of the last commit
-- ARGV[1]  maximum number of messages
-- ARGV[2]  maximum bytes of all messages; the first message is returned whatever its size
-- ARGV[3]  maximum bytes of one message
-- ARGV[4]  skip: number of oldest messages to leave out
--
-- Returns {seconds, microseconds, length, oversized, ledger, messages}: Redis TIME, the length of the queue, the ledger,
-- and the messages, oldest first. `oversized` is '' or, if the oldest message exceeds ARGV[3], its digest; then the only
-- message returned is its head. An oversized message ends a batch and is never part of one.
--
-- Each message costs a LINDEX: no command returns the size of a list element, and an LRANGE of 512 messages of 1 MB would be 512 MB.
--#include digest

local HEAD_BYTES = 4096
local queue, ledger = KEYS[1], KEYS[2]
local max_messages, bytes_left, message_bytes, skip = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local time = redis.call('TIME')
local length = redis.call('LLEN', queue)
local oversized, messages = '', {}
for i = 1, math.min(max_messages, length - skip) do
  local message = redis.call('LINDEX', queue, -(skip + i))
  if #message > message_bytes then
    if i == 1 then
      oversized = digest(message)
      messages[1] = string.sub(message, 1, HEAD_BYTES)
    end
    break
  end
  bytes_left = bytes_left - #message
  if bytes_left < 0 and i > 1 then
    break
  end
  messages[i] = message
end
return {time[1], time[2], length, oversized, redis.call('GET', ledger) or '', messages}
