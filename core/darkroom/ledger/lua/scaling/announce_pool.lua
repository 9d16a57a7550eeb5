-- announce: a pool exists and serves these models (names, comma-separated): said by the operator or by `darkroom up`.
-- Without any, it is no more: it is given no more jobs. Those that it has stay, for a pool that is made again. `owner`: the
-- operator that announces it, which withdraws it where its object was deleted while no operator ran.
may_always_run()
redis.call('SADD', P .. ':pools', a.pool)
redis.call('HSET', pool_key(a.pool), 'models', a.models, 'announced', now)
if a.owner then
  redis.call('HSET', pool_key(a.pool), 'owner', a.owner)
else
  redis.call('HDEL', pool_key(a.pool), 'owner')
end
return 'ok'
