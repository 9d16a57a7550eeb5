-- Appends an entry to a pool's decision log, at its own time; where the log has an entry of that time or a later one,
-- the call was repeated. The log keeps about `keep` entries, and is deleted after `ttl_ms` without a decision.
allow_at_maxmemory()
local key = decisions_key(a.pool)
local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
if last and tonumber(string.match(last[1], '^%d+')) >= tonumber(a.at) then return 'repeated' end
redis.call('XADD', key, 'MAXLEN', '~', a.keep, a.at .. '-0', 'entry', a.entry)
redis.call('PEXPIRE', key, a.ttl_ms)
return 'recorded'
