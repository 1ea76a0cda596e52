-- Read the audit entries after an id, bounded in count and in bytes. The other values that are returned show whether entries
-- after that id were trimmed or lost.
--
-- KEYS[1]  audit
-- ARGV[1]  id to read after; 0-0 for the beginning
-- ARGV[2]  maximum number of entries
-- ARGV[3]  maximum bytes of all entries; the first entry is returned whatever its size, and the last one may exceed the bound
--
-- Returns {seconds, microseconds, length, added, first, last, found, commit, entries}: Redis TIME; the number of entries; how many
-- were ever added, '' before Redis 7.0; the ids of the oldest and of the newest entry, '' if there is none; whether there is an
-- entry with the id ARGV[1] (1 or 0), and its field `commit`; then the entries, oldest first, each {id, {field, value, ...}}.
--
-- No command bounds a range by its bytes, and one entry may have several megabytes, so entries are read a few at a time.

local STEP = 8
local audit, after, entries_left, bytes_left = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local length = redis.call('XLEN', audit)
if length == 0 then
  return {time[1], time[2], 0, '', '', '', 0, '', {}}
end

local function table_of(list)
  local fields = {}
  for i = 1, #list, 2 do
    fields[list[i]] = list[i + 1]
  end
  return fields
end
local info = table_of(redis.call('XINFO', 'STREAM', audit))
local entry_at_id = redis.call('XRANGE', audit, after, after)[1]
local commit = entry_at_id and table_of(entry_at_id[2]).commit or ''

local entries, start = {}, '(' .. after
while entries_left > 0 and bytes_left > 0 do
  local count = math.min(STEP, entries_left)
  local page = redis.call('XRANGE', audit, start, '+', 'COUNT', count)
  for _, entry in ipairs(page) do
    if bytes_left <= 0 then
      break
    end
    for _, value in ipairs(entry[2]) do
      bytes_left = bytes_left - #value
    end
    start = '(' .. entry[1]
    entries[#entries + 1] = entry
  end
  entries_left = entries_left - #page
  if #page < count then
    break
  end
end
local added, first, last = info['entries-added'] or '', info['first-entry'][1], info['last-entry'][1]
return {time[1], time[2], length, added, first, last, entry_at_id and 1 or 0, commit, entries}
