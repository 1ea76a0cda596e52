-- Check which commands the ACL refuses this user, without running any.
--
-- KEYS       none: a user who may not access a declared key could not call the script
-- ARGV[1..]  commands, each: number of words, words
--
-- Returns the numbers of the refused commands, counted from 1; nil if a script cannot check because the server is older
-- than Redis 7.0.

if not redis.acl_check_cmd then
  return nil
end

local refused, position, number = {}, 0, 0
while position < #ARGV do
  local first = position + 2
  position = position + 1 + tonumber(ARGV[position + 1])
  number = number + 1
  if not redis.acl_check_cmd(unpack(ARGV, first, position)) then
    refused[#refused + 1] = number
  end
end
return refused
