-- sweep: a dispatched job whose message is not in the list and was pushed more than `age_ms` ago was taken and never
-- claimed: it is pushed again, in front; after five pushes it is undeliverable. The list is short by design, so it is read
-- whole. Also fills the list, for a pool whose workers came or went. Answers the ids that were pushed again.
may_always_run()
local old = redis.call('ZRANGEBYSCORE', dispatched_key(a.pool), '-inf', now - tonumber(a.age_ms))
local again = {}
if #old > 0 then
  local present = {}
  for _, message in ipairs(redis.call('LRANGE', list_key(a.pool), 0, -1)) do
    local id = string.match(message, '"delivery_tag": ?"([^":]+):%d+"')
    if id then present[id] = true end
  end
  for _, id in ipairs(old) do
    if not present[id] then
      redis.call('ZREM', dispatched_key(a.pool), id)
      if redis.call('HINCRBY', job_key(id), 'missed', 1) >= MAX_PUSHES then
        end_job(id, a.pool, 'failed', failure('undeliverable', 'its message was taken ' .. MAX_PUSHES
          .. ' times and the job never claimed'))
      else
        if room_in_list(a.pool) <= 0 then take_back_last(a.pool) end
        push(id, a.pool, 'RPUSH')
        again[#again + 1] = id
      end
    end
  end
end
dispatch(a.pool)
return again
