-- Pending entries of a group: their fields, their consumer, and how they are settled.

local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- The header `x` of a retried entry: its original id and its attempts. {} for a first delivery: a producer's header does not
-- count, and must not prevent settling.
local function header(fields, from_retry)
  local read, x = pcall(cjson.decode, from_retry and field(fields, 'x') or '{}')
  if not read or type(x) ~= 'table' then return {} end
  if type(x.origin) ~= 'string' or not parts(x.origin) then x.origin = nil end
  return x
end

-- The number of deliveries of the message before those of this entry.
local function earlier(x) return tonumber(x.fence) or tonumber(x.attempts) or 0 end

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

-- DONE and the pending entry if this consumer holds `id` at this counter, else the code that says why not.
local function held(key, group, consumer, id, counter)
  local p = redis.call('XPENDING', key, group, id, id, 1)
  if #p == 0 then return GONE end
  if p[1][2] ~= consumer or p[1][4] ~= counter then return TAKEN end
  return DONE, p[1]
end

-- Acknowledges entries. Those on a retry stream belong to this group alone, so they are deleted, too.
local function settled(key, group, stats, from_retry, ids)
  redis.call('XACK', key, group, unpack(ids))
  if from_retry then
    redis.call('XDEL', key, unpack(ids))
    redis.call('HINCRBY', stats, 'resettled', #ids)
  else
    redis.call('HINCRBY', stats, 'settled', #ids)
  end
end

-- Acknowledges a pending entry that was trimmed, and counts the loss.
local function count_trimmed(key, group, stats, from_retry, id)
  settled(key, group, stats, from_retry, {id})
  redis.call('HINCRBY', stats, 'trimmed', 1)
end

-- Claims an entry that this consumer holds already, with further options of XCLAIM. Returns a code.
local function hold_on(key, group, consumer, stats, from_retry, id, ...)
  local claimed = redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID', ...)
  if #claimed > 0 then return DONE end
  count_trimmed(key, group, stats, from_retry, id)
  return TRIMMED
end

-- Restarts sweeping at the oldest pending entry: entries were handed back behind the point where the last sweep stopped.
local function look_from_the_start(stats) redis.call('HSET', stats, 'sweep:main', '0-0', 'sweep:retry', '0-0') end

-- Whether a consumer's name is `<prefix><process>`; the prefix `<pod>.` may have more dots, the process has none.
local function is_of_pod(name, prefix)
  return prefix ~= '' and string.sub(name, 1, #prefix) == prefix and not string.find(name, '.', #prefix + 1, true)
end

-- Whether a consumer's pod is gone for good; its process may run a little longer.
local function is_leaving(stats, consumer)
  local prefix = string.match(consumer, '^(.*%.)[^.]*$')
  return prefix and string.find(redis.call('HGET', stats, 'gone') or '', ' ' .. prefix .. ' ', 1, true) ~= nil
end
