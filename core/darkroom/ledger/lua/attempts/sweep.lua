-- Pushes again, in its order, each dispatched job whose message is not in the queue and was pushed more than `age_ms`
-- ago: a worker received it and never claimed the job. After five pushes the job is undeliverable. The queue is short
-- by design, so it is read whole. Also fills the queue, for a pool whose workers came or went. Returns the ids that
-- were pushed again.
allow_at_maxmemory()
local dispatched = redis.call('ZRANGE', dispatched_key(a.pool), 0, -1)
local again = {}
if #dispatched > 0 then
  local present = {}
  for _, message in ipairs(redis.call('LRANGE', queue_key(a.pool), 0, -1)) do
    local id = string.match(message, '"delivery_tag": ?"([^":]+):%d+"')
    if id then present[id] = true end
  end
  for i = #dispatched, 1, -1 do -- in reverse order, so that the first is at the head in the end
    local id = dispatched[i]
    if not present[id] and has_record(id, dispatched_key(a.pool))
      and now - redis.call('HGET', job_key(id), 'pushed') >= tonumber(a.age_ms) then
      redis.call('ZREM', dispatched_key(a.pool), id)
      if redis.call('HINCRBY', job_key(id), 'missed', 1) >= MAX_PUSHES then
        finish_as_dead_letter(id, a.pool, failure('undeliverable', 'its message was received ' .. MAX_PUSHES
          .. ' times and the job was never claimed'))
      else
        if room_in_queue(a.pool) <= 0 then return_last_message(a.pool) end
        push(id, a.pool)
        table.insert(again, 1, id)
      end
    end
  end
end
dispatch(a.pool)
return again
