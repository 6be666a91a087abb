-- Pending entries of a group: their fields, their consumer, and how they are settled.
--
-- Agents may write anything into entries and into the keys of their groups. What cannot be read is dropped, put right and
-- counted: it stops nothing else.

-- The most fields that an entry keeps when it is moved: `unpack` takes 8000 values. Of one with more only those remain that
-- are part of a message.
local MOST_FIELDS = 100
-- What the functions add to an entry that is moved: a producer may have given fields the same names.
local ADDED = {x = true, origin = true, attempts = true, fence = true, reason = true, error = true}
local FIELDS_OF_A_MESSAGE = {m = true, s = true, t = true, p = true}

local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- Whether a text is the id of a replay, `<name>.<part of its uid>`.
local function is_replay(text) return type(text) == 'string' and #text <= 80 and string.find(text, '^[a-z0-9-]+%.[a-z0-9]+$') ~= nil end

-- The header `x` of a retried entry: its original id, its attempts, its fence, and the replay that it comes from, as far as they
-- can be read. {} for a first delivery: a producer's header does not count.
local function header(fields, from_retry)
  local read, x = pcall(cjson.decode, from_retry and field(fields, 'x') or '{}')
  if not read or type(x) ~= 'table' then return {} end
  return {origin = is_id(x.origin) and x.origin or nil, attempts = whole(x.attempts), fence = whole(x.fence),
    replay = is_replay(x.replay) and x.replay or nil}
end

-- The number of deliveries of the message before those of this entry.
local function earlier(x) return x.fence or x.attempts or 0 end

-- The fields that go with an entry when it is moved.
local function without_header(fields)
  local kept, has_too_many = {}, #fields > 2 * MOST_FIELDS
  for i = 1, #fields, 2 do
    if not ADDED[fields[i]] and (FIELDS_OF_A_MESSAGE[fields[i]] and #kept < 2 * MOST_FIELDS or not has_too_many) then
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

-- Adds to a counter of a group. One that is no number, or too large a one, begins anew.
local function tally(stats, name, n)
  if type(redis.pcall('HINCRBY', stats, name, n)) == 'number' then return end
  redis.pcall('HSET', stats, name, n)
  if name ~= 'unreadable' then tally(stats, 'unreadable', 1) end
end

-- Acknowledges entries. Those on a retry stream belong to this group alone, so they are deleted, too.
local function settled(key, group, stats, from_retry, ids)
  redis.call('XACK', key, group, unpack(ids))
  if from_retry then
    redis.call('XDEL', key, unpack(ids))
    tally(stats, 'resettled', #ids)
  else
    tally(stats, 'settled', #ids)
  end
end

-- Acknowledges a pending entry that was trimmed, and counts the loss.
local function count_trimmed(key, group, stats, from_retry, id)
  settled(key, group, stats, from_retry, {id})
  tally(stats, 'trimmed', 1)
end

-- Claims an entry that this consumer holds already, with further options of XCLAIM. Returns a code.
local function hold_on(key, group, consumer, stats, from_retry, id, ...)
  local claimed = redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID', ...)
  if #claimed > 0 then return DONE end
  count_trimmed(key, group, stats, from_retry, id)
  return TRIMMED
end

-- Where a scan of a group's entries is to go on, by a field of its stats; from the start if that cannot be read.
local function cursor_of(stats, name)
  local at = redis.call('HGET', stats, name)
  return is_id(at) and at or '0-0'
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
