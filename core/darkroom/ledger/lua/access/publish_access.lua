-- Stores the copy of tenants and keys. Each entry is an argument `=<field>` with the revision of its last change, a
-- blank and its content; the content is empty where it was deleted. An entry of a later revision stays. With `whole` the
-- entries are all that there were at `revision`: others, unless later, are removed, and verification may begin. With
-- `restored` nothing is later: the database was restored from a backup. The entries that changed are published, so that
-- processes read them again; `revision` stands for all of them. A changed running limit, and a tenant that was disabled
-- or enabled, take effect in the same step: the tenant's pending jobs are held, or become eligible, in their order.
allow_at_maxmemory()
local function revision_of(entry) return entry and tonumber(string.match(entry, '^%d+')) or -1 end

-- The running limit in the entry of a tenant or key, as a field of the tenant's running limits; 0 for a disabled tenant.
-- Returns nothing for another entry.
local function running_limit_of(field, entry)
  local kind, name = string.match(field, '^(%a+):(.*)$')
  local content = entry and string.match(entry, '^%d+ (.+)$')
  if not content or kind ~= 'tenant' and kind ~= 'key' then return end
  local record = cjson.decode(content)
  local limit = record.limits and record.limits.running_jobs
  if kind == 'tenant' then return name, 'tenant', record.disabled and 0 or limit end
  return record.tenant, name, limit
end

-- Tenants whose running limits changed, each with the names of its limits, and '' where one was set or removed.
local relimited = {}
local function set_running_limit(tenant, name, limit)
  local limits = running_limits_key(tenant)
  local before = redis.call('HGET', limits, name)
  if tonumber(before) == limit then return end
  relimited[tenant] = relimited[tenant] or {}
  for _, each in ipairs(redis.call('HKEYS', limits)) do relimited[tenant][each] = true end
  relimited[tenant][name] = true
  if not (before and limit) then relimited[tenant][''] = true end -- a scope begins or ends
  if limit then redis.call('HSET', limits, name, limit) else redis.call('HDEL', limits, name) end
end

local changed = {}
-- Stores an entry; none: removes it.
local function put(field, entry)
  local tenant, name, limit = running_limit_of(field, entry)
  if not tenant then tenant, name = running_limit_of(field, redis.call('HGET', access_key, field)) end
  if tenant then set_running_limit(tenant, name, limit) end
  if entry then redis.call('HSET', access_key, field, entry) else redis.call('HDEL', access_key, field) end
  changed[#changed + 1] = field
end

if a.restored then
  for _, field in ipairs(redis.call('HKEYS', access_key)) do
    if field ~= 'revision' and not a['=' .. field] then put(field) end
  end
  redis.call('HDEL', access_key, 'revision')
end
for name, entry in pairs(a) do
  if string.sub(name, 1, 1) == '=' then
    local field = string.sub(name, 2)
    local stored = redis.call('HGET', access_key, field)
    if a.restored or revision_of(stored) < revision_of(entry) then put(field, entry) end
  end
end
if a.whole then
  local revision = tonumber(a.revision)
  local stored = redis.call('HGETALL', access_key)
  for i = 1, #stored, 2 do
    local field = stored[i]
    if field ~= 'revision' and not a['=' .. field] and revision_of(stored[i + 1]) <= revision then
      put(field)
    end
  end
  local last = redis.call('HGET', access_key, 'revision')
  if not last or tonumber(last) < revision then redis.call('HSET', access_key, 'revision', revision) end
end

-- Calls a command with many arguments, a thousand at a time.
local function call_with(command, key, arguments)
  for first = 1, #arguments, 1000 do
    redis.call(command, key, unpack(arguments, first, math.min(first + 999, #arguments)))
  end
end

-- The pending jobs of a tenant in a pool, by line, with whether each is held now.
local function pending_jobs(tenant, pool, names)
  local found = {}
  local function find(set, is_held)
    for _, id in ipairs(redis.call('ZRANGE', set, 0, -1)) do
      local job = queued_job(id, pool)
      job.is_held = is_held
      if job.tenant == tenant then found[#found + 1] = job end
    end
  end
  find(share_key(pool, tenant), false)
  for _, name in ipairs(names) do find(excess_key(pool, name), true) end
  table.sort(found, function(x, y)
    if x.line ~= y.line then return x.line < y.line end
    return x.id < y.id
  end)
  return found
end

-- Admits the pending jobs of a tenant anew, in the order of their lines, after a limit was set or removed. A job that is
-- held now has no order until it is eligible again, so that jobs which were held for long do not precede all others.
local function admit_anew(tenant, keys)
  local names = {tenant}
  for name in pairs(keys) do
    if name ~= 'tenant' then names[#names + 1] = tenant .. '/' .. name end
  end
  local pools = redis.call('SUNION', pools_key, limited_pools_key(tenant))
  for _, name in ipairs(names) do redis.call('DEL', running_of_key(name)) end
  redis.call('DEL', limited_pools_key(tenant))
  for _, pool in ipairs(pools) do -- all running jobs are counted before any is admitted
    for _, id in ipairs(redis.call('ZRANGE', running_key(pool), 0, -1)) do
      local job = queued_job(id, pool)
      if job.tenant == tenant then
        for _, scope in ipairs(scopes_of(job)) do redis.call('SADD', running_of_key(scope.name), id) end
      end
    end
  end
  for _, pool in ipairs(pools) do
    local was_empty = redis.call('ZCARD', waiting_key(pool)) + redis.call('ZCARD', dispatched_key(pool)) == 0
    local jobs = pending_jobs(tenant, pool, names)
    local admitted, excess, room, scopes_by_key = {}, {}, {}, {}
    for _, name in ipairs(names) do
      redis.call('DEL', excess_key(pool, name), admitted_key(pool, name))
      admitted[name], excess[name] = {}, {}
    end
    local held, released, left, members = {}, {}, {}, {}
    for _, job in ipairs(jobs) do
      scopes_by_key[job.key or ''] = scopes_by_key[job.key or ''] or scopes_of(job)
      local held_by
      for _, scope in ipairs(scopes_by_key[job.key or '']) do
        room[scope.name] = room[scope.name] or room_in_scope(scope, pool)
        local set = room[scope.name] > 0 and admitted or excess
        table.insert(set[scope.name], digits(job.line))
        table.insert(set[scope.name], job.id)
        if set == excess then
          held_by = scope.kind
          break
        end
        room[scope.name] = room[scope.name] - 1
      end
      if held_by then
        redis.call('HSET', job_key(job.id), 'held', held_by, 'order', '')
        members[#members + 1] = digits(now)
        members[#members + 1] = job.id
        if not job.is_held then
          if redis.call('ZSCORE', dispatched_key(pool), job.id) then
            remove_from_queue(job)
          else
            left[#left + 1] = job.id
          end
        end
      elseif job.is_held then
        released[#released + 1] = job
        held[#held + 1] = job.id
      end
    end
    call_with('ZREM', waiting_key(pool), left)
    call_with('ZREM', share_key(pool, tenant), left)
    call_with('ZREM', by_user_key(pool, tenant), left)
    call_with('ZREM', held_key(pool), held)
    call_with('ZADD', held_key(pool), members)
    for _, name in ipairs(names) do
      call_with('ZADD', admitted_key(pool, name), admitted[name])
      call_with('ZADD', excess_key(pool, name), excess[name])
    end
    for _, job in ipairs(released) do
      redis.call('HDEL', job_key(job.id), 'held')
      add_to_backlog(job)
    end
    for _, scopes in pairs(scopes_by_key) do
      if #scopes > 0 then redis.call('SADD', limited_pools_key(tenant), pool) end
    end
    dispatch(pool)
    if was_empty and redis.call('ZCARD', dispatched_key(pool)) > 0 then
      redis.call('PUBLISH', wake_channel, 'backlog ' .. pool)
    end
  end
end

for tenant, keys in pairs(relimited) do
  if keys[''] then
    keys[''] = nil
    admit_anew(tenant, keys)
  else -- limits that have another value move the difference alone
    for name in pairs(keys) do
      local job = {tenant = tenant, key = name ~= 'tenant' and name}
      apply_limits(job, scopes_of(job))
    end
  end
end
if a.restored then changed = {'revision'} end
for _, field in ipairs(changed) do redis.call('PUBLISH', access_channel, field) end
return #changed
