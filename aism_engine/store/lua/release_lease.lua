-- Release the lease at a clean stop, so that a standby takes it at once.
--
-- KEYS[1]  lease: the token of its holder
-- ARGV[1]  token of this engine
--
-- Returns 1 if the lease is released, 0 if this engine did not hold it.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
