-- Records that a pool exists and serves these models (names, comma-separated), for the operator or `darkroom up`.
-- Without models the pool accepts no more jobs; those that it has stay, for a pool that is created again. `owner`: the
-- operator that announces it, and withdraws it where its object was deleted while no operator ran.
allow_at_maxmemory()
redis.call('SADD', pools_key, a.pool)
redis.call('HSET', pool_key(a.pool), 'models', a.models, 'announced', now)
if a.owner then
  redis.call('HSET', pool_key(a.pool), 'owner', a.owner)
else
  redis.call('HDEL', pool_key(a.pool), 'owner')
end
return 'ok'
