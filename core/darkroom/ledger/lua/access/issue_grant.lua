-- Stores a ticket or a session (`kind`) under the SHA-256 of its text (`digest`), for `ttl` ms; a session that is used is
-- extended, until `life` ms from now at the latest. A credential (`owner`) has at most `most` of a kind: beyond that a
-- ticket is refused, and the session that would expire first ends. Returns 0, or when the next ticket expires.
allow_at_maxmemory()
local key, owned = grant_key(a.kind, a.digest), grants_of_key(a.kind, a.owner)
if redis.call('EXISTS', key) == 1 then return 0 end
redis.call('ZREMRANGEBYSCORE', owned, '-inf', now)
if redis.call('ZCARD', owned) >= tonumber(a.most) then
  local first = redis.call('ZRANGE', owned, 0, 0, 'WITHSCORES')
  if a.kind == 'ticket' then return tonumber(first[2]) end
  redis.call('DEL', grant_key(a.kind, first[1]))
  redis.call('ZREM', owned, first[1])
end
local expires = now + a.ttl
redis.call('HSET', key, 'content', a.content, 'owner', a.owner, 'expires', expires, 'ends', now + a.life)
redis.call('PEXPIRE', key, a.ttl)
redis.call('ZADD', owned, expires, a.digest)
redis.call('PEXPIRE', owned, a.life)
return 0
