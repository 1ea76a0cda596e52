-- Read many strings, bounded in bytes, because any client may have written anything there.
--
-- KEYS[1..]  strings
-- ARGV[1]    maximum bytes of a value
--
-- Returns the value of each key: '' if it is absent or too long, or if the key is not a string.

local max_bytes = tonumber(ARGV[1])

local values = {}
for i, key in ipairs(KEYS) do
  local value = redis.pcall('GETRANGE', key, 0, max_bytes)  -- one byte more than allowed
  values[i] = type(value) == 'string' and #value <= max_bytes and value or ''
end
return values
