-- Check which commands the ACL refuses this user, without running any.
--
-- KEYS       none: a user who may not access a declared key could not call the script
-- ARGV[1..]  commands, each: number of words, words
--
-- Returns {code, number, ...}: the numbers of the refused commands, counted from 1.
--   CHECKED      1  all commands were checked
--   UNSUPPORTED  0  the server is older than Redis 7.0, where a script cannot check

local code = {CHECKED = 1, UNSUPPORTED = 0}
if not redis.acl_check_cmd then
  return {code.UNSUPPORTED}
end

local reply, position, number = {code.CHECKED}, 0, 0
while position < #ARGV do
  local first = position + 2
  position = position + 1 + tonumber(ARGV[position + 1])
  number = number + 1
  if not redis.acl_check_cmd(unpack(ARGV, first, position)) then
    reply[#reply + 1] = number
  end
end
return reply
