-- Take the lease, or renew it.
--
-- KEYS[1]  lease: the token of its holder; expires
-- KEYS[2]  epoch: the token of the newest leader; never expires
-- ARGV[1]  holder: a random id of this engine
-- ARGV[2]  time to live in milliseconds
-- ARGV[3]  token that this engine holds, or ''
--
-- Returns {code, token of the holder, milliseconds until the lease expires}:
--   RENEWED  2  the engine still holds it
--   TAKEN    1  the engine holds it from now on, under a new epoch
--   HELD     0  another engine holds it
--
-- A token is `epoch:holder`. Tokens are compared whole, because after a failover two holders may have the same epoch number.

local code = {RENEWED = 2, TAKEN = 1, HELD = 0}
local lease, epoch = KEYS[1], KEYS[2]
local holder, ttl_ms, own_token = unpack(ARGV)

local current, newest = redis.call('GET', lease), redis.call('GET', epoch)
if current and current == own_token and newest == current then
  redis.call('PEXPIRE', lease, ttl_ms)
  return {code.RENEWED, current, ttl_ms}
end
if current and current ~= own_token then
  return {code.HELD, current, redis.call('PTTL', lease)}
end
local number = 1 + (tonumber(string.match(newest or '', '^(%d+):')) or 0)
local token = string.format('%.0f', number) .. ':' .. holder
redis.call('SET', epoch, token)
redis.call('SET', lease, token, 'PX', ttl_ms)
return {code.TAKEN, token, ttl_ms}
