-- Records that the result function applied an event of the job: its terminal event or, where a webhook asks for it, a
-- start. Stores a delivery for each address that asks for such events: the job's own webhook, and the subscriptions of
-- its tenant. The outbox entry leaves with the last event of the job. Once the history has the job too
-- (`mark_archived.lua`), its time to live starts; that of a dead letter when it is purged or redriven. Returns
-- `applied` the first time, `repeated` later, `unknown` for a job or event that does not exist, and `newer` where the
-- record is of a later version than `v`, the latest that the caller knows: it could miss a webhook. An event that a
-- later one of the job overtook (a Broker keeps no order) is applied, and delivered to no webhook: receivers get the
-- events of a job in order.
allow_at_maxmemory()
local key = job_key(a.job)
local rec = redis.call('HMGET', key, 'tenant', 'state', 'end_seq', 'applied', PENDING_STARTS, PUBLISHED_STARTS,
  'model', 'webhook', 'webhook_events', 'webhook_target', 'v')
if tonumber(rec[11] or 0) > tonumber(a.v) then return 'newer' end
local tenant, state, is_applied, pending, published = rec[1], rec[2], rec[4], rec[5], rec[6]
local is_end = rec[3] == a.seq

local answer = 'unknown'
if is_end and is_applied or has_word(published, a.seq) then
  answer = 'repeated'
elseif is_end then
  redis.call('HSET', key, 'applied', now)
  is_applied, answer = true, 'applied'
elseif has_word(pending, a.seq) then
  local left = {}
  for seq in string.gmatch(pending, '%S+') do
    if seq ~= a.seq then left[#left + 1] = seq end
  end
  pending = #left > 0 and table.concat(left, ' ')
  if pending then redis.call('HSET', key, PENDING_STARTS, pending) else redis.call('HDEL', key, PENDING_STARTS) end
  redis.call('HSET', key, PUBLISHED_STARTS, (published and published .. ' ' or '') .. a.seq)
  answer = 'applied'
end
if answer == 'unknown' then return answer end
if not pending and (is_applied or not is_terminal(state)) then redis.call('ZREM', outbox_key, a.job) end
if answer == 'repeated' then return answer end

redis.call('HDEL', key, 'relay_takes', 'relay_refused') -- the next event starts with a lease of normal length
local is_overtaken = not is_end and is_applied
for seq in string.gmatch(published or '', '%S+') do
  is_overtaken = is_overtaken or tonumber(seq) > tonumber(a.seq)
end
if is_overtaken then
  start_ttl(a.job, tenant)
  return answer
end
local event = is_end and state or 'started'
local stored = false
local function store(recipient, url, target)
  local id = a.job .. '.' .. a.seq .. '.' .. recipient
  redis.call('HSET', delivery_key(id), 'job', a.job, 'seq', a.seq, 'event', event, 'recipient', recipient,
    'tenant', tenant, 'url', url, 'created', now, 'tried', 0, 'base', 0)
  open_delivery(id, a.job, target)
  stored = true
end
if rec[8] and has_word(rec[9], event) then store('job', rec[8], rec[10]) end
for _, id in ipairs(redis.call('ZRANGE', subscriptions_key(tenant), 0, -1)) do
  local it = redis.call('HMGET', subscription_key(id), 'state', 'events', 'models', 'url', 'target')
  if it[1] == 'enabled' and has_word(it[2], event) and (it[3] == '' or has_word(it[3], rec[7])) then
    store(id, it[4], it[5])
  end
end
if stored then redis.call('PUBLISH', wake_channel, 'deliveries') end
start_ttl(a.job, tenant)
return answer
