-- The oldest entries of the audit trail, for the courier, and the end of the chain that it published last: {seq,
-- digest, entry, …}. Operations whose outcome has been unknown for `abandoned_ms`, because their process has ended,
-- become entries as they are. A call looks at a few of these.
allow_at_maxmemory()
local open = redis.call('HLEN', audit_open_key) > 0 and redis.call('HSCAN', audit_open_key, 0, 'COUNT', 100)[2] or {}
for i = 1, #open, 2 do
  local since, entry = string.match(open[i + 1], '^(%d+) (.*)$')
  if now - tonumber(since) >= tonumber(a.abandoned_ms) then
    redis.call('HDEL', audit_open_key, open[i])
    append_to_audit(entry)
  end
end
local head = redis.call('HMGET', audit_head_key, 'seq', 'digest')
local reply = {head[1] or '', head[2] or ''}
for _, entry in ipairs(redis.call('ZRANGE', audit_key, 0, a.limit - 1)) do reply[#reply + 1] = entry end
return reply
