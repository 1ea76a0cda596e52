-- Take the lease, or renew it.
--
-- KEYS[1] lease: the holder's token, expiring       KEYS[2] epoch: the token of the newest leader, never expiring
-- ARGV[1] holder: a random id of this engine        ARGV[2] ttl in milliseconds
-- ARGV[3] token held so far, or ''
--
-- Returns {code, token, milliseconds that it lasts}:
--   RENEWED   2  still ours            TAKEN   1  ours from now on, under a new epoch
--   HELD      0  another's; token says whose
--
-- A token is `epoch:holder`. It is compared whole: after a failover two holders may have been given the same number.

local lease, epoch = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if lease and lease == ARGV[3] and epoch == lease then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {2, lease, ARGV[2]}
end
if lease and lease ~= ARGV[3] then
  return {0, lease, redis.call('PTTL', KEYS[1])}
end
local number = 1 + (tonumber(string.match(epoch or '', '^(%d+):')) or 0)
local token = string.format('%.0f', number) .. ':' .. ARGV[1]
redis.call('SET', KEYS[2], token)
redis.call('SET', KEYS[1], token, 'PX', ARGV[2])
return {1, token, ARGV[2]}
