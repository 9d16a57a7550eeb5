-- decided: one more entry of a pool's decision log, at its own time; one of that time or a later one is there already
-- when the call is repeated. The log keeps about `keep` entries, and goes when nothing was decided for `ttl_ms`.
may_always_run()
local key = decisions_key(a.pool)
local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
if last and tonumber(string.match(last[1], '^%d+')) >= tonumber(a.at) then return 'repeated' end
redis.call('XADD', key, 'MAXLEN', '~', a.keep, a.at .. '-0', 'entry', a.entry)
redis.call('PEXPIRE', key, a.ttl_ms)
return 'recorded'
