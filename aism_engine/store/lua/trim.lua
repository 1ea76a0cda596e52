-- Take the oldest entries of the audit away, down to what is to be kept, but none that an archive has yet to read.
--
-- KEYS[1] epoch: the token of the newest leader      KEYS[2] audit
-- ARGV[1] token     ARGV[2] keep: how many entries stay at least     ARGV[3] most: how many go at a time
-- ARGV[4] before: the entry with this id, and all that are younger, stay; '' where no archive holds anything back
--
-- Returns {code, removed, more}; more is 1 where there may be more to take away at once:
--   TRIMMED  1  done          FENCED  -1  another engine has led since

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {-1, 0, 0}
end
local audit, keep, most, before = KEYS[2], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local length = redis.call('XLEN', audit)
local wanted = math.min(length - keep, most)
if wanted <= 0 then
  return {1, 0, 0}
end

-- Ids are numbers of up to 20 digits, without leading zeros: of two, the longer is the greater.
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

local goes, from, stopped = wanted, '-', false
if before ~= '' then
  goes = 0
  while goes < wanted and not stopped do
    local asked = math.min(8, wanted - goes)  -- an entry may be some megabytes
    local found = redis.call('XRANGE', audit, from, '+', 'COUNT', asked)
    for _, entry in ipairs(found) do
      if not is_before(entry[1], before) then
        stopped = true
        break
      end
      goes = goes + 1
      from = '(' .. entry[1]
    end
    stopped = stopped or #found < asked
  end
end
if goes > 0 then
  redis.call('XTRIM', audit, 'MAXLEN', '=', length - goes)
end
return {1, goes, (not stopped and length - goes > keep) and 1 or 0}
