-- Read the oldest messages of a queue without removing them.
--
-- KEYS[1]  queue: a list, pushed at its head and read from its tail
-- KEYS[2]  ledger: the id of the last commit
-- ARGV[1]  maximum number of messages
-- ARGV[2]  maximum bytes of all messages. The first message may exceed this maximum, but not ARGV[3].
-- ARGV[3]  maximum bytes of one message
-- ARGV[4]  skip: number of oldest messages to leave out
--
-- Returns {seconds, microseconds, length, oversized, ledger, messages}: Redis TIME, the length of the queue, the ledger,
-- and the messages, oldest first. `oversized` is '' or, if the oldest message exceeds ARGV[3], its digest; then the
-- only element of `messages` is the first 4 KiB of that message. If a later message exceeds ARGV[3], only the messages before it
-- are returned.
--
-- No command returns the size of a list element, and an LRANGE of 512 messages of 1 MB would be 512 MB. The script therefore
-- reads in chunks. The first chunk has one message. A later chunk has at most the smallest of three numbers: 8; the number of
-- messages read so far; one more than the number of messages of average size that fit into the remaining bytes.
--#include digest

local HEAD_BYTES, CHUNK_MESSAGES = 4096, 8
local queue, ledger = KEYS[1], KEYS[2]
local max_messages, max_bytes, message_bytes, skip = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local time = redis.call('TIME')
local length = redis.call('LLEN', queue)
local oversized, messages = '', {}
local count, read, bytes = math.min(max_messages, length - skip), 0, 0
while read < count and bytes <= max_bytes do
  local fitting = math.floor((max_bytes - bytes) * read / math.max(bytes, 1)) + 1
  local size = math.min(math.max(read, 1), fitting, CHUNK_MESSAGES, count - read)
  local chunk = redis.call('LRANGE', queue, -(skip + read + size), -(skip + read + 1)) -- newest first
  for i = size, 1, -1 do
    local message = chunk[i]
    if #message > message_bytes then
      if read == 0 then
        oversized = digest(message)
        messages[1] = string.sub(message, 1, HEAD_BYTES)
      end
      count = read
      break
    end
    bytes = bytes + #message
    if bytes > max_bytes and read > 0 then
      break
    end
    read = read + 1
    messages[read] = message
  end
end
return {time[1], time[2], length, oversized, redis.call('GET', ledger) or '', messages}
