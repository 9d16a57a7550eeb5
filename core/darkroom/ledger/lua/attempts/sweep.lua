-- sweep: a dispatched job whose message is not in the list and was pushed more than `age_ms` ago was taken and never
-- claimed: it is pushed again, in front; after five pushes it is undeliverable. The list is short by design, so it is read
-- whole. Also fills the list, for a pool whose workers came or went. Answers the ids that were pushed again.
may_always_run()
local dispatched = redis.call('ZRANGE', dispatched_key(a.pool), 0, -1)
local again = {}
if #dispatched > 0 then
  local present = {}
  for _, message in ipairs(redis.call('LRANGE', list_key(a.pool), 0, -1)) do
    local id = string.match(message, '"delivery_tag": ?"([^":]+):%d+"')
    if id then present[id] = true end
  end
  for i = #dispatched, 1, -1 do -- the first comes last, so that it is in front in the end
    local id = dispatched[i]
    if not present[id] and has_record(id, dispatched_key(a.pool))
      and now - redis.call('HGET', job_key(id), 'pushed') >= tonumber(a.age_ms) then
      redis.call('ZREM', dispatched_key(a.pool), id)
      if redis.call('HINCRBY', job_key(id), 'missed', 1) >= MAX_PUSHES then
        end_dead(id, a.pool, failure('undeliverable', 'its message was taken ' .. MAX_PUSHES
          .. ' times and the job never claimed'))
      else
        if room_in_list(a.pool) <= 0 then take_back_last(a.pool) end
        push(id, a.pool, 'RPUSH')
        table.insert(again, 1, id)
      end
    end
  end
end
dispatch(a.pool)
return again
