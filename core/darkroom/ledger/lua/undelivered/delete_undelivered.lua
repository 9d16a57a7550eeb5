-- discard: an undelivered event of the tenant's is kept no longer. Answers `gone`, whether or not there was one.
may_always_run()
if redis.call('HGET', undelivered_key(a.event), 'tenant') == a.tenant then discard_undelivered(a.event) end
return 'gone'
