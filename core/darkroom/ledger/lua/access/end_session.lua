-- Deletes a session.
allow_at_maxmemory()
local key = grant_key('session', a.digest)
local owner = redis.call('HGET', key, 'owner')
if owner then
  redis.call('DEL', key)
  redis.call('ZREM', grants_of_key('session', owner), a.digest)
end
return 'ok'
