-- Release the lease at a clean stop, so that a standby takes it at once.
--
-- KEYS[1]  lease: the token of its holder
-- ARGV[1]  token of this engine
--
-- Returns a code:
--   RELEASED  1  the lease is free
--   NOT_HELD  0  this engine did not hold it

local code = {RELEASED = 1, NOT_HELD = 0}
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return code.NOT_HELD
end
redis.call('DEL', KEYS[1])
return code.RELEASED
