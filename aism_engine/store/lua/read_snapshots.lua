-- Read what agents write themselves, bounded in bytes, because any client may have written anything there.
--
-- KEYS[1]    heartbeats
-- KEYS[2]    index
-- KEYS[3..]  for each agent: its metadata, its state, its record
-- ARGV[1..]  ids of the agents
--
-- Returns for each agent {type, labels, state, score, recorded}: '' for a value that is absent, of another type, or too long.
-- `recorded` is 0 if the record of the agent is absent or empty, or if the agent is not in the index. Otherwise it is 1. A record
-- or an index of the wrong type does not show that the agent is missing, so it does not make `recorded` 0.

local max_bytes = {type = 64, labels = 65536, state = 64, score = 64}
local heartbeats, index = KEYS[1], KEYS[2]

local function bounded(value, limit)
  return type(value) == 'string' and #value <= limit and value or ''
end

local snapshots = {}
for i, agent_id in ipairs(ARGV) do
  local metadata, state, record = KEYS[3 * i], KEYS[3 * i + 1], KEYS[3 * i + 2]
  local is_missing = redis.pcall('STRLEN', record) == 0 or redis.pcall('SISMEMBER', index, agent_id) == 0
  snapshots[i] = {
    bounded(redis.pcall('HGET', metadata, 'type'), max_bytes.type),
    bounded(redis.pcall('HGET', metadata, 'labels'), max_bytes.labels),
    bounded(redis.pcall('GETRANGE', state, 0, max_bytes.state), max_bytes.state),
    bounded(redis.pcall('ZSCORE', heartbeats, agent_id), max_bytes.score),
    is_missing and 0 or 1,
  }
end
return snapshots
