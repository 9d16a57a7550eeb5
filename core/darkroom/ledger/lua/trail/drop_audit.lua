-- SQL has these entries of the audit trail (arguments `=<number>`): they are removed, and the end of the chain after
-- them is published. One that another courier published meanwhile may be later; the chain has both.
allow_at_maxmemory()
for name, entry in pairs(a) do
  if string.sub(name, 1, 1) == '=' then redis.call('ZREM', audit_key, entry) end
end
redis.call('HSET', audit_head_key, 'seq', a.seq, 'digest', a.digest)
return 'ok'
