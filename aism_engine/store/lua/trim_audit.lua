-- Remove the oldest audit entries, except those that an archive has not read yet.
--
-- KEYS[1]  epoch: the fencing token of the newest leader
-- KEYS[2]  audit
-- ARGV[1]  fencing token of the sender
-- ARGV[2]  keep: number of entries that must remain
-- ARGV[3]  maximum number of entries to remove
-- ARGV[4]  id of the oldest entry that an archive still needs; '' if there is no archive
--
-- Returns {code, number of entries removed, 1 if there may be more to remove at once, otherwise 0}:
--   TRIMMED  1  done
--   FENCED  -1  another engine has taken the lease since

local code = {TRIMMED = 1, FENCED = -1}
local STEP = 8  -- entries read at a time: one may have several megabytes
local epoch, audit = KEYS[1], KEYS[2]
local token, keep, max_entries, needed_from = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

if redis.call('GET', epoch) ~= token then
  return {code.FENCED, 0, 0}
end
local length = redis.call('XLEN', audit)
local surplus = math.min(length - keep, max_entries)
if surplus <= 0 then
  return {code.TRIMMED, 0, 0}
end

-- The parts of an id are numbers of up to 20 digits without leading zeros, more than a Lua number holds: the longer one is greater.
local function is_less(a, b)
  if #a ~= #b then
    return #a < #b
  end
  return a < b
end
local function is_before(a, b)
  local a_ms, a_number = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_number = string.match(b, '^(%d+)-(%d+)$')
  if a_ms ~= b_ms then
    return is_less(a_ms, b_ms)
  end
  return is_less(a_number, b_number)
end

local removed, held_back = surplus, false
if needed_from ~= '' then
  removed = 0
  local start = '-'
  while removed < surplus and not held_back do
    local count = math.min(STEP, surplus - removed)
    local page = redis.call('XRANGE', audit, start, '+', 'COUNT', count)
    for _, entry in ipairs(page) do
      if not is_before(entry[1], needed_from) then
        held_back = true
        break
      end
      removed = removed + 1
      start = '(' .. entry[1]
    end
    held_back = held_back or #page < count
  end
end
if removed > 0 then
  redis.call('XTRIM', audit, 'MAXLEN', '=', length - removed)
end
return {code.TRIMMED, removed, (not held_back and length - removed > keep) and 1 or 0}
