-- announce: a pool exists and serves these models (names, comma-separated): said by the operator or by `darkroom up`.
-- Without any, it is no more: it is given no more jobs. Those that it has stay, for a pool that is made again.
may_always_run()
redis.call('SADD', P .. ':pools', a.pool)
redis.call('HSET', pool_key(a.pool), 'models', a.models, 'announced', now)
return 'ok'
