-- Give the lease back at a clean stop, so that a standby takes it at once.
--
-- KEYS[1] lease     ARGV[1] token
--
-- Returns 1 where it was ours, else 0.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
