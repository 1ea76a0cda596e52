-- Take the lease, or renew it.
--
-- KEYS[1]  lease: the token of its holder; expires
-- KEYS[2]  epoch: the token of the newest leader; never expires
-- KEYS[3]  led_at: when an engine last took or renewed the lease, in unix seconds by Redis TIME; never expires
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
local lease, epoch, led_at = KEYS[1], KEYS[2], KEYS[3]
local holder, ttl_ms, own_token = unpack(ARGV)

-- Only people read led_at, so a failed write of it must not cost the engine its lease.
local function note_time()
  redis.pcall('SET', led_at, redis.call('TIME')[1])
end

local current, newest = redis.call('GET', lease), redis.call('GET', epoch)
if current and current == own_token and newest == current then
  redis.call('PEXPIRE', lease, ttl_ms)
  note_time()
  return {code.RENEWED, current, ttl_ms}
end
if current and current ~= own_token then
  return {code.HELD, current, redis.call('PTTL', lease)}
end
local number = 1 + (tonumber(string.match(newest or '', '^(%d+):')) or 0)
local token = string.format('%.0f', number) .. ':' .. holder
redis.call('SET', epoch, token)
redis.call('SET', lease, token, 'PX', ttl_ms)
note_time()
return {code.TAKEN, token, ttl_ms}
