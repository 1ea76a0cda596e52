-- Try every command that a commit may need, on a key of its own: what is forbidden shall show before the first commit, and not in the
-- middle of one.
--
-- KEYS[1] probe: left as it was found, absent       ARGV[1..] the channels that a commit publishes to
--
-- Returns 1; raises NOPERM.

local probe = KEYS[1]
local tries = {
  {'SET', 'x'}, {'MSET', 'x'}, {'MGET'}, {'PEXPIRE', 1000}, {'DEL'},
  {'HSET', 'f', 'v'}, {'HGET', 'f'}, {'DEL'},
  {'LPUSH', 'x'}, {'LLEN'}, {'LINDEX', 0}, {'LREM', 0, 'y'}, {'LTRIM', 0, 0}, {'LMOVE', probe, 'RIGHT', 'LEFT'}, {'DEL'},
  {'SADD', 'x'}, {'SREM', 'x'}, {'ZADD', 1, 'x'}, {'ZSCORE', 'x'}, {'ZREM', 'x'},
  {'XADD', '*', 'f', 'v'}, {'XDEL', '0-1'}, {'TYPE'}, {'DEL'},
}
for _, try in ipairs(tries) do
  redis.call(try[1], probe, unpack(try, 2))
end
if redis.acl_check_cmd then  -- from 7.0 on; before that, a channel can be tried only by publishing to it
  for _, channel in ipairs(ARGV) do
    if not redis.acl_check_cmd('PUBLISH', channel, '') then
      return redis.error_reply('NOPERM this user may not publish to ' .. channel)
    end
  end
end
return 1
