-- Records how long Redis keeps finished jobs (`record_ttl_ms`), and how many bytes they may use (`ended_limit`), by the
-- courier once per tick, since a Redis that lost its data has neither. Applies to jobs that finish from then on.
allow_at_maxmemory()
redis.call('HSET', counters_key, 'record_ttl_ms', a.record_ttl_ms, 'ended_limit', a.ended_limit)
return 'ok'
