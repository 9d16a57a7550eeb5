-- Deletes an undelivered event of the tenant. Returns `gone`, whether or not there was one.
allow_at_maxmemory()
if redis.call('HGET', undelivered_key(a.event), 'tenant') == a.tenant then remove_undelivered(a.event) end
return 'gone'
