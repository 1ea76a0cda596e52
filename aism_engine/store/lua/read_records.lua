-- Read fields of many hashes.
--
-- KEYS[1..]  hashes
-- ARGV[1]    maximum bytes of a value
-- ARGV[2..]  names of the fields to read; if there are none, all fields are read
--
-- Returns for each hash one MessagePack array of strings: the values of the named fields; or, if all fields are read, names and
-- values in turn. A value is '' if it is absent or too long, or if the key is not a hash. If all fields are read, a hash with
-- more than 10,000 fields counts as empty: no record has that many.
--
-- A packed record is one reply instead of one reply for each field, so the client reads it faster.

local MAX_FIELDS = 10000
local max_bytes = tonumber(ARGV[1])
local fields = {unpack(ARGV, 2)}

local records = {}
for i, key in ipairs(KEYS) do
  local values = {}
  if #fields > 0 then
    values = redis.pcall('HMGET', key, unpack(fields))
  else
    local length = redis.pcall('HLEN', key)
    if type(length) == 'number' and length <= MAX_FIELDS then
      values = redis.pcall('HGETALL', key)
    end
  end
  if values.err then
    values = {}
  end
  for j = 1, math.max(#fields, #values) do
    local value = values[j]
    if not value or #value > max_bytes then
      values[j] = ''
    end
  end
  records[i] = cmsgpack.pack(values)
end
return records
