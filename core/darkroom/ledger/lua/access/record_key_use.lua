-- Records when keys were last used, in milliseconds since the epoch: arguments `=<key>`. An earlier time has no effect.
-- With `stored` the times are those that SQL has: entries that have not changed since are removed.
allow_at_maxmemory()
for name, at in pairs(a) do
  if string.sub(name, 1, 1) == '=' then
    local id = string.sub(name, 2)
    local last = tonumber(redis.call('HGET', key_uses_key, id) or 0)
    if a.stored then
      if last <= tonumber(at) then redis.call('HDEL', key_uses_key, id) end
    elseif last < tonumber(at) then
      redis.call('HSET', key_uses_key, id, at)
    end
  end
end
return 'ok'
