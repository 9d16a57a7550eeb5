-- Records an operation in the entries of the audit trail, which the courier stores in SQL. Two calls for one operation:
-- with `open`, before its handler runs, the entry is held until its outcome is known; the second call replaces it. An
-- entry of a refusal needs the second call alone. An operation is refused where there is no room, since nothing may be
-- done without a record; the outcome of an open one always has room. Several entries may be given, as `=<uid>`.
allow_at_maxmemory()
for name, entry in pairs(a) do
  if string.sub(name, 1, 1) == '=' then
    local uid = string.sub(name, 2)
    local is_open = redis.call('HEXISTS', audit_open_key, uid) == 1
    if not is_open and not has_room_in_audit(entry) then return 'full' end
    if a.open then
      redis.call('HSET', audit_open_key, uid, string.format('%.0f ', now) .. entry)
    else
      redis.call('HDEL', audit_open_key, uid)
      append_to_audit(entry)
    end
  end
end
return 'ok'
