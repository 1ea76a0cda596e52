-- Read what agents have set by their own hand, bounded in bytes: anyone may have written anything there.
--
-- KEYS[1] heartbeats                     KEYS[2..] for each agent its metadata and its state
-- ARGV[1..] the ids of the agents
--
-- Returns for each agent {type, labels, state, score}; what is absent, of another type, or longer than it may be, is ''.

local limits = {type = 64, labels = 65536, state = 64}

local function bounded(value, limit)
  return type(value) == 'string' and #value <= limit and value or ''
end

local found = {}
for i, id in ipairs(ARGV) do
  local metadata, state = KEYS[2 * i], KEYS[2 * i + 1]
  found[i] = {
    bounded(redis.pcall('HGET', metadata, 'type'), limits.type),
    bounded(redis.pcall('HGET', metadata, 'labels'), limits.labels),
    bounded(redis.pcall('GETRANGE', state, 0, limits.state), limits.state),
    bounded(redis.pcall('ZSCORE', KEYS[1], id), 64),
  }
end
return found
