-- Read the head (the first bytes) of the oldest command of each list. The engine compares it with the commands that it pushed,
-- and so detects which of them the agent has popped. A `cancel` is skipped: it is pushed to the end that is popped next, ahead
-- of older commands, so its position does not show what was popped.
--
-- KEYS[1..]  lists
-- ARGV[1]    maximum bytes of a head
--
-- Returns for each list the head of its oldest command: '' if the list has none, false if the key is not a list.

-- Maximum number of elements that are examined in one list. If all of them are cancels, the head of a cancel is returned, and
-- the engine detects no deliveries. An agent pops cancels first, so an agent with that many cancels in its list is not popping,
-- and has no new deliveries.
local MAX_CANCELS = 100
local max_bytes = tonumber(ARGV[1])
local CANCELS = {  -- the first two fields of a `cancel`: in JSON; in MessagePack with an id of up to 31 bytes; with a longer id
  '^{"id":"[%w._-]+","type":"cancel"',
  '^[\128-\143]\162id[\160-\191][%w._-]+\164type\166cancel',
  '^[\128-\143]\162id\217.[%w._-]+\164type\166cancel',
}

local function is_cancel(head)
  for _, pattern in ipairs(CANCELS) do
    if string.find(head, pattern) then
      return true
    end
  end
  return false
end

local heads = {}
for i, list in ipairs(KEYS) do
  for position = -1, -MAX_CANCELS, -1 do
    local element = redis.pcall('LINDEX', list, position)
    heads[i] = type(element) ~= 'table' and string.sub(element or '', 1, max_bytes)
    if not heads[i] or not is_cancel(heads[i]) then
      break
    end
  end
end
return heads
