-- Settles entries: acknowledges or retries them, or moves them to the dead letters.

-- Upper bounds, in ms, of the latency buckets; the last bucket is unbounded. As `BOUNDS` of the operator.
local BOUNDS = {1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000, 7500,
  10000, 15000, 20000, 30000, 45000, 60000, 90000, 120000, 180000, 300000, 450000, 600000, 900000, 1200000, 1800000,
  2700000, 3600000}
-- Of a group that is faster, in ms, the buckets say enough: it pays nothing for its slowest message.
local SLOW = 1000

local function bucket(ms)
  for _, bound in ipairs(BOUNDS) do
    if ms <= bound then return 'le:' .. bound end
  end
  return 'le:inf'
end

-- Notes how long the slowest message took.
local function note_slowest(stats, ms)
  if ms > SLOW and ms > (whole(redis.call('HGET', stats, 'slowest')) or 0) then
    redis.call('HSET', stats, 'slowest', string.format('%.0f', ms))
  end
end

-- The delivery counters of this consumer's entries from the first to the last of `count` ids, in one call: mostly the ids
-- are in order and next to each other. `held` finds the others.
local function counters(key, group, consumer, first, last, count)
  local found = {}
  for _, p in ipairs(redis.call('XPENDING', key, group, first, last, 2 * count, consumer)) do found[p[1]] = p[4] end
  return found
end

-- Counts messages of a replay that a group has handled (acked) or given up (dead). An agent may have made up the replay.
local function count_replayed(stats, replay, outcome, n)
  local name = 'replay:' .. replay .. ':' .. outcome
  if redis.call('HGET', stats, name) then tally(stats, name, n) end
end

-- Notes in the key `parked` that a message of a replay is finished, for those with its ordering key that come after it.
local function finish_replayed(parked, x, origin)
  if redis.call('HGET', parked, 'replay:' .. origin) == x.replay then redis.call('HDEL', parked, 'replay:' .. origin) end
end

-- Notes what became of settled entries, by their original ids: that those were acknowledged for which receipts may ask, and
-- that a retry is over.
local function note_settled(parked, receipts, from_retry, origins)
  for _, origin in ipairs(origins) do
    if receipts ~= '' and redis.call('ZSCORE', receipts, origin) then
      redis.call('HSET', parked, origin, 'acknowledged')
    elseif from_retry then
      redis.call('HDEL', parked, origin)
    end
  end
end

-- KEYS: stream. ARGV: group, consumer, stats key, parked key or '', receipts key or '', retry stream? (0|1),
-- outcome (acked|skipped), id, counter, ...
-- Acknowledges entries. Returns DONE, GONE or TAKEN for each; with large retries, only for the first ones.
local function settle(keys, args)
  local key, group, consumer, stats, parked, receipts = keys[1], args[1], args[2], args[3], args[4], args[5]
  local from_retry, outcome, count = flag(args[6]), args[7], count_of(args, 8, 2, 1, PAGE)
  if outcome ~= 'acked' and outcome ~= 'skipped' then refuse('ERR unknown outcome') end
  check_id(args[8])
  check_id(args[#args - 1])
  local now, replies, ids, origins, waits, latencies, replayed = now_ms(), {}, {}, {}, {}, {}, {}
  local known = counters(key, group, consumer, args[8], args[#args - 1], count)
  local left = allowance()
  for i = 8, #args, 2 do
    if left.bytes <= 0 then break end
    local id, counter = args[i], number_in(args[i + 1], 0, MOST)
    -- the server knows the others as ids
    if not known[id] then check_id(id) end
    local code = known[id] == counter and DONE or held(key, group, consumer, id, counter)
    replies[#replies + 1] = code
    if code == DONE then
      local origin, x = id, {}
      if from_retry then
        local e = redis.call('XRANGE', key, id, id)
        if e[1] then
          x = header(e[1][2], true)
          origin = x.origin or id
          spend(left, size_of(e[1][2]))
        end
      end
      ids[#ids + 1], origins[#origins + 1] = id, origin
      if x.replay then
        -- how long ago it was added says nothing about how fast the group is
        replayed[x.replay] = (replayed[x.replay] or 0) + 1
        if parked ~= '' then finish_replayed(parked, x, origin) end
      else
        local wait = now - ms_of(origin)
        waits[wait] = (waits[wait] or 0) + 1
      end
    end
  end
  if #ids > 0 then
    settled(key, group, stats, from_retry, ids)
    tally(stats, outcome, #ids)
    if parked ~= '' then note_settled(parked, receipts, from_retry, origins) end
    for replay, n in pairs(replayed) do count_replayed(stats, replay, 'acked', n) end
    if outcome == 'acked' then
      local slowest = 0
      for wait, n in pairs(waits) do
        local b = bucket(wait)
        latencies[b] = (latencies[b] or 0) + n
        if wait > slowest then slowest = wait end
      end
      note_slowest(stats, slowest)
      for b, n in pairs(latencies) do tally(stats, b, n) end
    end
  end
  return replies
end

-- Reads the entry that is to leave this delivery: a code, and if that is DONE the fields without header, and the header
-- with the deliveries so far as its fence.
local function take_up(key, group, consumer, id, counter, stats, from_retry)
  local code = held(key, group, consumer, id, counter)
  if code ~= DONE then return code end
  local e = redis.call('XRANGE', key, id, id)
  if #e == 0 then
    count_trimmed(key, group, stats, from_retry, id)
    return TRIMMED
  end
  local x = header(e[1][2], from_retry)
  x.origin, x.fence = x.origin or id, earlier(x) + counter
  return DONE, without_header(e[1][2]), x
end

-- Checks the arguments that a retry and a dead letter have in common: up to the counter, the attempts at `args[last - 2]`,
-- reason and error. Returns whether the entry is on a retry stream, the counter, and the attempts.
local function check_leaving(args, last)
  count_of(args, last + 1, 1, 0, 0)
  check_length(args[last - 1], LONGEST_TEXT)
  check_length(args[last], LONGEST_TEXT)
  check_id(args[6])
  return flag(args[5]), number_in(args[7], 0, MOST), number_in(args[last - 2], 0, MOST)
end

-- Notes that a message is tried again. One of a replay keeps what was known of it: that it was acknowledged, or is retried
-- already, as a dead letter was.
local function note_retry(parked, x)
  if parked ~= '' and not x.replay then redis.call('HSET', parked, x.origin, 'retrying') end
end

local function add_header(fields, x)
  fields[#fields + 1] = 'x'
  fields[#fields + 1] = cjson.encode(x)
end

-- KEYS: stream. ARGV: group, consumer, stats key, parked key or '', retry stream? (0|1), id, counter,
-- delay key, retry key, delay in ms, attempts so far, reason, error.
-- Has an entry delivered again after a delay. Returns a code.
local function retry(keys, args)
  local from_retry, counter, attempts = check_leaving(args, 13)
  local key, group, consumer, stats, parked, id = keys[1], args[1], args[2], args[3], args[4], args[6]
  local delay_key, retry_key, delay = args[8], args[9], number_in(args[10], 0, LONGEST)
  local code, fields, x = take_up(key, group, consumer, id, counter, stats, from_retry)
  if code ~= DONE then return code end
  x.attempts, x.reason, x.error = attempts, args[12], args[13]
  add_header(fields, x)
  if delay > 0 then
    local now = now_ms()
    -- the member holds all fields, as the stream may be trimmed meanwhile; origin and attempts make it unique
    local new = redis.call('ZADD', delay_key, now + delay, cmsgpack.pack({x.origin, x.attempts, fields, delay}))
    -- how far the clock was when it was set back; see `mend`
    if now > (whole(redis.call('HGET', stats, 'sweep:delayed')) or 0) then
      redis.call('HSET', stats, 'sweep:delayed', string.format('%.0f', now))
    end
    -- a group that was made again at its checkpoint may fail as before: both retries are one
    if new == 0 then tally(stats, 'resettled', 1) end
  else
    redis.call('XADD', retry_key, '*', unpack(fields))
  end
  settled(key, group, stats, from_retry, {id})
  tally(stats, 'retried', 1)
  note_retry(parked, x)
  return DONE
end

-- Writes a dead letter: the fields of the entry, then its origin, attempts, fence, reason and error.
local function bury(dlq_key, stats, parked, fields, x, attempts, reason, err)
  local letter = fields
  for _, v in ipairs({'origin', x.origin, 'attempts', attempts, 'fence', x.fence, 'reason', reason, 'error', err}) do
    letter[#letter + 1] = v
  end
  local id = redis.call('XADD', dlq_key, '*', unpack(letter))
  tally(stats, 'dead', 1)
  if parked ~= '' then
    -- what was acknowledged before it was replayed stays so
    if not x.replay or redis.call('HGET', parked, x.origin) == 'retrying' then redis.call('HSET', parked, x.origin, 'dead') end
    if x.replay then finish_replayed(parked, x, x.origin) end
  end
  if x.replay then count_replayed(stats, x.replay, 'dead', 1) end
  return id
end

-- KEYS: stream. ARGV: group, consumer, stats key, parked key or '', retry stream? (0|1), id, counter,
-- dead letter key, attempts so far, reason, error.
-- Moves an entry to the group's dead letters. Returns a code.
local function dead_letter(keys, args)
  local from_retry, counter, attempts = check_leaving(args, 11)
  local key, group, consumer, stats, parked, id = keys[1], args[1], args[2], args[3], args[4], args[6]
  local code, fields, x = take_up(key, group, consumer, id, counter, stats, from_retry)
  if code ~= DONE then return code end
  bury(args[8], stats, parked, fields, x, attempts, args[10], args[11])
  settled(key, group, stats, from_retry, {id})
  return DONE
end

register('as1_settle', settle, {'allow-oom'})
register('as1_retry', retry, {'allow-oom'})
register('as1_dead_letter', dead_letter, {'allow-oom'})
