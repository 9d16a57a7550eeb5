-- Stores the copy of tenants and keys. Each entry is an argument `=<field>` with the revision of its last change, a
-- blank and its content; the content is empty where it was deleted. An entry of a later revision stays. With `whole` the
-- entries are all that there were at `revision`: others, unless later, are removed, and verification may begin. With
-- `restored` nothing is later: the database was restored from a backup. The entries that changed are published, so that
-- processes read them again; `revision` stands for all of them.
allow_at_maxmemory()
if a.restored then redis.call('DEL', access_key) end

local function revision_of(entry) return entry and tonumber(string.match(entry, '^%d+')) or -1 end

local changed = {}
local function put(field, entry)
  redis.call('HSET', access_key, field, entry)
  changed[#changed + 1] = field
end

for name, entry in pairs(a) do
  if string.sub(name, 1, 1) == '=' then
    local field = string.sub(name, 2)
    local stored = redis.call('HGET', access_key, field)
    if revision_of(stored) < revision_of(entry) then put(field, entry) end
  end
end
if a.whole then
  local revision = tonumber(a.revision)
  local stored = redis.call('HGETALL', access_key)
  for i = 1, #stored, 2 do
    local field = stored[i]
    if field ~= 'revision' and not a['=' .. field] and revision_of(stored[i + 1]) <= revision then
      redis.call('HDEL', access_key, field)
      changed[#changed + 1] = field
    end
  end
  local last = redis.call('HGET', access_key, 'revision')
  if not last or tonumber(last) < revision then redis.call('HSET', access_key, 'revision', revision) end
end
if a.restored then changed = {'revision'} end
for _, field in ipairs(changed) do redis.call('PUBLISH', access_channel, field) end
return #changed
