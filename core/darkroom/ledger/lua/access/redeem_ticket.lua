-- Uses up a ticket, and returns its content; nothing where there is none, it has expired or was redeemed. The same
-- redemption (`by`) may be repeated, since its reply may be lost.
allow_at_maxmemory()
local key = grant_key('ticket', a.digest)
local grant = redis.call('HMGET', key, 'content', 'owner', 'expires', 'redeemed_by')
if not grant[1] or tonumber(grant[3]) <= now then return false end
if not grant[4] then
  redis.call('HSET', key, 'redeemed_by', a.by)
  redis.call('ZREM', grants_of_key('ticket', grant[2]), a.digest)
elseif grant[4] ~= a.by then
  return false
end
return grant[1]
