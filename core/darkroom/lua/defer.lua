-- defer: an entry that was taken is due again in `delay_ms`, because the other side did not take it.
may_always_run()
return redis.call('ZADD', outward[a.kind], 'XX', 'CH', now + tonumber(a.delay_ms), a.job)
