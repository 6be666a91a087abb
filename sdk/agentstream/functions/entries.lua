-- Entries as groups hold them: their fields, who holds them, and how they leave a group.

local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- The header `x` of a retried entry: where it came from and how often it was tried. {} for a first delivery, and for
-- what a producer made up: it must not keep the entry from being settled.
local function header(fields)
  local read, x = pcall(cjson.decode, field(fields, 'x') or '{}')
  if not read or type(x) ~= 'table' then return {} end
  if type(x.origin) ~= 'string' then x.origin = nil end
  return x
end

-- How many deliveries of the message came before those of this entry. What a producer says of it does not count.
local function earlier(x, from_retry)
  return from_retry and (tonumber(x.fence) or tonumber(x.attempts)) or 0
end

local function without_header(fields)
  local kept = {}
  for i = 1, #fields, 2 do
    if fields[i] ~= 'x' then
      kept[#kept + 1] = fields[i]
      kept[#kept + 1] = fields[i + 1]
    end
  end
  return kept
end

-- DONE and the pending entry if this consumer holds `id` at this delivery, else why not.
local function held(key, group, consumer, id, counter)
  local p = redis.call('XPENDING', key, group, id, id, 1)
  if #p == 0 then return GONE end
  if p[1][2] ~= consumer or p[1][4] ~= counter then return TAKEN end
  return DONE, p[1]
end

-- Takes entries off a group. What is on a retry stream belongs to that group alone, so it is deleted too.
local function settled(key, group, stats, from_retry, ids)
  redis.call('XACK', key, group, unpack(ids))
  if from_retry then
    redis.call('XDEL', key, unpack(ids))
    redis.call('HINCRBY', stats, 'resettled', #ids)
  else
    redis.call('HINCRBY', stats, 'settled', #ids)
  end
end

-- An entry that a group still owed but the stream no longer has: counted as lost, and taken off.
local function count_trimmed(key, group, stats, from_retry, id)
  settled(key, group, stats, from_retry, {id})
  redis.call('HINCRBY', stats, 'trimmed', 1)
end

-- Claims an entry that this consumer holds already, with further options of XCLAIM. The server drops one that was
-- trimmed meanwhile. Returns a code.
local function hold_on(key, group, consumer, stats, from_retry, id, ...)
  local claimed = redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID', ...)
  if #claimed > 0 then return DONE end
  count_trimmed(key, group, stats, from_retry, id)
  return TRIMMED
end

-- The next claim begins with the oldest pending entry: what has just become anybody's lies behind where the last one stopped.
local function look_from_the_start(stats) redis.call('HSET', stats, 'sweep:main', '0-0', 'sweep:retry', '0-0') end

-- Whether `prefix` is `<pod>.` and the consumer a process of this pod; a pod's name may have dots of its own.
local function is_of_pod(name, prefix)
  return prefix ~= '' and string.sub(name, 1, #prefix) == prefix and not string.find(name, '.', #prefix + 1, true)
end

-- Whether a consumer's pod was said to be gone for good: its process may live on for a while, but not for long.
local function is_leaving(stats, consumer)
  local prefix = string.match(consumer, '^(.*%.)[^.]*$')
  return prefix and string.find(redis.call('HGET', stats, 'gone') or '', ' ' .. prefix .. ' ', 1, true) ~= nil
end
