-- Read some fields of many hashes: one call costs the client a tenth of as many replies.
--
-- KEYS[1..] the hashes     ARGV[1] most bytes of a field     ARGV[2..] the fields; none: all, each behind its name
--
-- Returns for each the values of the fields, as one MessagePack array of strings; '' for one that is absent, or too long, or where there is no
-- hash. Of all fields none are given where there are more than 10,000: no hash of ours has so many. Packed, a record is one reply and not as many as it has fields, and is read in one go.

local limit = tonumber(ARGV[1])
local fields = {unpack(ARGV, 2)}
local found = {}
for i, key in ipairs(KEYS) do
  local values = {}
  if #fields > 0 then
    values = redis.pcall('HMGET', key, unpack(fields))
  else
    local length = redis.pcall('HLEN', key)
    if type(length) == 'number' and length <= 10000 then
      values = redis.pcall('HGETALL', key)
    end
  end
  if values.err then
    values = {}
  end
  for j = 1, math.max(#fields, #values) do
    local value = values[j]
    if not value or #value > limit then
      values[j] = ''
    end
  end
  found[i] = cmsgpack.pack(values)
end
return found
