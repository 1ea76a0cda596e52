-- Remove the oldest audit entries, except those that an archive has not read yet.
--
-- KEYS[1]  epoch: the fencing token of the newest leader
-- KEYS[2]  audit
-- ARGV[1]  fencing token of the sender
-- ARGV[2]  keep: number of entries that must remain
-- ARGV[3]  maximum number of entries to remove
-- ARGV[4]  id of the oldest entry that an archive still needs; '' if there is no archive. With 0-0, or with a text that is
--          not an id, nothing is removed.
--
-- Returns {code, number of entries removed, 1 if another call may remove more, otherwise 0}:
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

local removed, held_back = surplus, false
if needed_from ~= '' then
  removed = 0
  local start, before = '-', '(' .. needed_from
  while removed < surplus and not held_back do
    local count = math.min(STEP, surplus - removed)
    local page = redis.pcall('XRANGE', audit, start, before, 'COUNT', count)
    removed = removed + #page
    held_back = #page < count
    if not held_back then
      start = '(' .. page[count][1]
    end
  end
end
if removed > 0 then
  redis.call('XTRIM', audit, 'MAXLEN', '=', length - removed)
end
return {code.TRIMMED, removed, (not held_back and length - removed > keep) and 1 or 0}
