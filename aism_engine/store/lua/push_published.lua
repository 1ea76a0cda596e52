-- Put what was heard on a channel into the queue, unless something that was heard later is there already.
--
-- KEYS[1] the queue     KEYS[2] how far it has come: `{epoch}:{number}`
-- ARGV[1] epoch of the leader that heard it     ARGV[2] its number under that epoch     ARGV[3..] the messages
--
-- Returns 1; 0 where it comes too late: a request may arrive long after its sender has given it up.

local epoch, number = string.match(redis.call('GET', KEYS[2]) or '', '^(%d+):(%d+)$')
local last = {tonumber(epoch or 0), tonumber(number or 0)}
local ours = {tonumber(ARGV[1]), tonumber(ARGV[2])}
if ours[1] < last[1] or (ours[1] == last[1] and ours[2] <= last[2]) then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1] .. ':' .. ARGV[2])
for i = 3, #ARGV do
  redis.call('LPUSH', KEYS[1], ARGV[i])
end
return 1
