-- Read the entries of the audit behind a place, bounded in count and in bytes, and what tells whether any are missing there.
--
-- KEYS[1] audit
-- ARGV[1] id to read behind; 0-0 for the beginning    ARGV[2] most entries
-- ARGV[3] most bytes of them all: the first entry is given whatever its size, and the last may exceed it
--
-- Returns {seconds, microseconds, length, added, first, last, found, commit, entry, ...}: Redis TIME; how many entries are there, and how many were
-- ever added ('' before Redis 7.0, which does not count); the ids of the oldest and of the newest, '' where there is none; 1 where there is an
-- entry under ARGV[1], and its field `commit`; then the entries, oldest first, each {id, {field, value, ...}}.
--
-- No command bounds a range by its bytes, and one entry may be some megabytes: they are read a few at a time.

local audit, most, bytes = KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local length = redis.call('XLEN', audit)
if length == 0 then
  return {time[1], time[2], 0, '', '', '', 0, ''}
end

local info, told = redis.call('XINFO', 'STREAM', audit), {}
for i = 1, #info, 2 do
  told[info[i]] = info[i + 1]
end
local reply = {time[1], time[2], length, told['entries-added'] or '', told['first-entry'][1], told['last-entry'][1], 0, ''}
local here = redis.call('XRANGE', audit, ARGV[1], ARGV[1])[1]
if here then
  reply[7] = 1
  for i = 1, #here[2], 2 do
    if here[2][i] == 'commit' then
      reply[8] = here[2][i + 1]
    end
  end
end

local from, step = ARGV[1], 8
while most > 0 and bytes > 0 do
  local asked = math.min(step, most)
  local found = redis.call('XRANGE', audit, '(' .. from, '+', 'COUNT', asked)
  for _, entry in ipairs(found) do
    if bytes <= 0 then
      break
    end
    for _, value in ipairs(entry[2]) do
      bytes = bytes - #value
    end
    from = entry[1]
    reply[#reply + 1] = entry
  end
  most = most - #found
  if #found < asked then
    break
  end
end
return reply
