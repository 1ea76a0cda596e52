-- Read the head of what lies at the tail of many lists: who it is that will be popped next.
--
-- KEYS[1..] the lists     ARGV[1] most bytes of each
--
-- Returns for each the head of its oldest element; '' where there is none; false where it is no list.

local found = {}
for i, key in ipairs(KEYS) do
  local element = redis.pcall('LINDEX', key, -1)
  if type(element) == 'table' then
    found[i] = false
  else
    found[i] = string.sub(element or '', 1, tonumber(ARGV[1]))
  end
end
return found
