-- Digest of a message: the SHA-1 of its first 4 KiB and its length, because SHA-1 of 20 MB would stall the server for 94 ms.
-- domain/text.py: message_digest() computes the same.
local function digest(message)
  return redis.sha1hex(string.sub(message, 1, 4096)) .. ':' .. #message
end
