-- Returns the content of a session and when it ends at the latest; nothing where there is none or it has expired. With
-- `idle` it now expires after so many ms without use. That is written once per `step` ms, and not for each use.
allow_at_maxmemory()
local key = grant_key('session', a.digest)
local session = redis.call('HMGET', key, 'content', 'owner', 'expires', 'ends')
if not session[1] or tonumber(session[3]) <= now then return false end
if a.idle then
  local expires = math.min(now + a.idle, tonumber(session[4]))
  if expires - session[3] >= tonumber(a.step) then
    redis.call('HSET', key, 'expires', expires)
    redis.call('PEXPIRE', key, expires - now)
    redis.call('ZADD', grants_of_key('session', session[2]), 'XX', expires, a.digest)
  end
end
return {session[1], session[4]}
