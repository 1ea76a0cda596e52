-- Push published messages to a queue, unless a newer push came first. Epoch and number give the order of the pushes.
--
-- KEYS[1]    queue
-- KEYS[2]    publication cursor: `epoch:number` of the last push
-- ARGV[1]    epoch of the leader that received the messages
-- ARGV[2]    number of this push within the epoch
-- ARGV[3..]  messages, oldest first
--
-- Returns 1 if the messages are in the queue, 0 if a newer push came first: a call may reach the server long after its
-- engine gave up waiting for it.

local queue, cursor = KEYS[1], KEYS[2]
local epoch, number = tonumber(ARGV[1]), tonumber(ARGV[2])

local last_epoch, last_number = string.match(redis.call('GET', cursor) or '', '^(%d+):(%d+)$')
last_epoch, last_number = tonumber(last_epoch or 0), tonumber(last_number or 0)
if epoch < last_epoch or (epoch == last_epoch and number <= last_number) then
  return 0
end
redis.call('SET', cursor, ARGV[1] .. ':' .. ARGV[2])
for i = 3, #ARGV do
  redis.call('LPUSH', queue, ARGV[i])
end
return 1
