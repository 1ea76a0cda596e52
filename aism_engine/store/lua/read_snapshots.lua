-- Read what agents write themselves, bounded in bytes, because any client may have written anything there.
--
-- KEYS[1]    heartbeats
-- KEYS[2..]  for each agent: its metadata, its state
-- ARGV[1..]  ids of the agents
--
-- Returns for each agent {type, labels, state, score}: '' for a value that is absent, of another type, or too long.

local max_bytes = {type = 64, labels = 65536, state = 64, score = 64}
local heartbeats = KEYS[1]

local function bounded(value, limit)
  return type(value) == 'string' and #value <= limit and value or ''
end

local snapshots = {}
for i, agent_id in ipairs(ARGV) do
  local metadata, state = KEYS[2 * i], KEYS[2 * i + 1]
  snapshots[i] = {
    bounded(redis.pcall('HGET', metadata, 'type'), max_bytes.type),
    bounded(redis.pcall('HGET', metadata, 'labels'), max_bytes.labels),
    bounded(redis.pcall('GETRANGE', state, 0, max_bytes.state), max_bytes.state),
    bounded(redis.pcall('ZSCORE', heartbeats, agent_id), max_bytes.score),
  }
end
return snapshots
