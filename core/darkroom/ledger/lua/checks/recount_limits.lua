-- Compares the counts of pending jobs and of unfinished bytes with the jobs that there are, for the audit. `pools` and
-- `owners` are lists with blanks between: the pools to read, and counts that should be 0 unless a job is found; an
-- owner is a tenant, or a tenant, a colon and a credential. `repair`: corrects the counts. All jobs are read at one
-- moment. An owner with jobs in states of a later version is left out. Returns for each owner that differs
-- `<owner> <jobs> <bytes> <jobs found> <bytes found>`.
allow_at_maxmemory()
local found, seen = {}, {}
local function add(owner, jobs, bytes)
  local it = found[owner] or {0, 0}
  found[owner] = {it[1] + jobs, it[2] + bytes}
end
for owner in string.gmatch(a.owners or '', '%S+') do add(owner, 0, 0) end
for pool in string.gmatch(a.pools, '%S+') do
  for _, set in ipairs({waiting_key(pool), dispatched_key(pool), due_key(pool), held_key(pool), running_key(pool)}) do
    for _, id in ipairs(redis.call('ZRANGE', set, 0, -1)) do
      local rec = redis.call('HMGET', job_key(id), 'tenant', 'key_id', 'state', 'reserved')
      if rec[4] and not seen[id] then
        seen[id] = true
        local jobs, bytes = rec[3] == 'pending' and 1 or 0, bytes_of(id)
        if rec[3] ~= 'pending' and rec[3] ~= 'running' then jobs = 0 / 0 end -- a later version's state: unknown
        add(rec[1], jobs, bytes)
        if rec[2] then add(rec[1] .. ':' .. rec[2], jobs, bytes) end
      end
    end
  end
end
local differing = {}
for owner, it in pairs(found) do
  local key = limits_key(owner)
  local counted = redis.call('HMGET', key, 'jobs', 'bytes')
  local jobs, bytes = tonumber(counted[1] or 0), tonumber(counted[2] or 0)
  if it[1] == it[1] and (jobs ~= it[1] or bytes ~= it[2]) then -- NaN differs from itself
    differing[#differing + 1] = string.format('%s %.0f %.0f %.0f %.0f', owner, jobs, bytes, it[1], it[2])
    if a.repair then
      redis.call('HSET', key, 'jobs', it[1], 'bytes', it[2])
      if it[2] == 0 then redis.call('PEXPIRE', key, COUNTS_TTL_MS) else redis.call('PERSIST', key) end
    end
  end
end
table.sort(differing)
return differing
