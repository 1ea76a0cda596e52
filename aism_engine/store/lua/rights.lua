-- Tell which commands this user may not use, without using any.
--
-- KEYS none     ARGV[1..] the commands, each: how many words, the words
--
-- Returns the places, counted from 1, of those that are refused; {-1} before Redis 7.0, where a script cannot ask.
-- No key is declared: a user who may not touch one of them could not call this.

if not redis.acl_check_cmd then
  return {-1}
end
local refused, a, place = {}, 1, 0
while a <= #ARGV do
  local last = a + tonumber(ARGV[a])
  place = place + 1
  if not redis.acl_check_cmd(unpack(ARGV, a + 1, last)) then
    refused[#refused + 1] = place
  end
  a = last + 1
end
return refused
