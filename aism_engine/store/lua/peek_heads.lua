-- Read the head of the oldest element of each list.
--
-- KEYS[1..]  lists
-- ARGV[1]    maximum bytes of a head
--
-- Returns for each list the head of its oldest element: '' if the list is empty, false if the key is not a list.

local max_bytes = tonumber(ARGV[1])
local heads = {}
for i, list in ipairs(KEYS) do
  local element = redis.pcall('LINDEX', list, -1)
  if type(element) == 'table' then
    heads[i] = false
  else
    heads[i] = string.sub(element or '', 1, max_bytes)
  end
end
return heads
