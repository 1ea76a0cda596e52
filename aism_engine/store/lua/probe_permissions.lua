-- Try the commands that a commit needs, so that a missing permission shows before the first commit and not within one. GET is
-- not tried: an engine needs it to take the lease.
--
-- KEYS[1]    probe: a key used for nothing else, absent before and after
-- ARGV[1..]  channels that a commit publishes to
--
-- Returns OK; raises NOPERM.

local probe = KEYS[1]
local calls = {
  {'SET', 'x'}, {'MSET', 'x'}, {'MGET'}, {'PEXPIRE', 1000}, {'DEL'},
  {'HSET', 'f', 'v'}, {'HGET', 'f'}, {'DEL'},
  {'LPUSH', 'x'}, {'LLEN'}, {'LINDEX', 0}, {'LREM', 0, 'y'}, {'LTRIM', 0, 0}, {'LMOVE', probe, 'RIGHT', 'LEFT'}, {'DEL'},
  {'SADD', 'x'}, {'SREM', 'x'}, {'ZADD', 1, 'x'}, {'ZSCORE', 'x'}, {'ZREM', 'x'},
  {'XADD', '*', 'f', 'v'}, {'XDEL', '0-1'}, {'TYPE'}, {'DEL'},
}
for _, call in ipairs(calls) do
  redis.call(call[1], probe, unpack(call, 2))
end
if redis.acl_check_cmd then  -- Redis 7.0 or later; before that, only publishing shows whether a channel is permitted
  for _, channel in ipairs(ARGV) do
    if not redis.acl_check_cmd('PUBLISH', channel, '') then
      return redis.error_reply('NOPERM this user may not publish to ' .. channel)
    end
  end
end
return redis.status_reply('OK')
