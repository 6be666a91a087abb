-- Sweeps a group: moves retries that are due, and claims entries with expired leases. Any consumer of the group does it.

-- The longest time between two sweeps, in ms, while nothing is pending or delayed.
local REST = 10000
-- The most pending entries that one call scans, as other clients wait meanwhile.
local SCAN = 5000
-- Longer, in ms, than any entry has been idle.
local NEVER = 1000000000000000

-- Moves retries that are due to the retry stream. Returns their number.
local function move_due(delay_key, retry_key, now, limit)
  local due = redis.call('ZRANGE', delay_key, '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
  for _, member in ipairs(due) do
    redis.call('XADD', retry_key, '*', unpack(cmsgpack.unpack(member)[3]))
    redis.call('ZREM', delay_key, member)
  end
  return #due
end

-- Claims up to `count` entries whose lease has expired, from where the group's last call stopped. Returns them, and whether
-- all pending entries have been scanned.
local function claim_stalled(key, group, consumer, stats, from_retry, lease, count)
  local cursor_field, settled_field = 'sweep:main', 'settled'
  if from_retry then cursor_field, settled_field = 'sweep:retry', 'resettled' end
  local start = redis.call('HGET', stats, cursor_field) or '0-0'
  local cursor, ids, looked, trimmed = start, {}, 0, 0
  while #ids < count and looked < SCAN do
    local wanted = count - #ids
    -- JUSTID leaves the delivery counter: as1_begin counts the attempt when a handler starts
    local claimed = redis.call('XAUTOCLAIM', key, group, consumer, lease, cursor, 'COUNT', wanted, 'JUSTID')
    -- the server scans up to ten times as many entries as it is to claim
    cursor, looked, trimmed = claimed[1], looked + 10 * wanted, trimmed + #claimed[3]
    for _, id in ipairs(claimed[2]) do ids[#ids + 1] = id end
    if cursor == '0-0' then break end
  end
  if cursor ~= start then redis.call('HSET', stats, cursor_field, cursor) end
  if trimmed > 0 then
    redis.call('HINCRBY', stats, 'trimmed', trimmed)
    redis.call('HINCRBY', stats, settled_field, trimmed)
  end
  return owned(key, group, stats, from_retry, ids), looked > 0 and cursor == '0-0'
end

local function is_pending(key, group) return #redis.call('XPENDING', key, group, '-', '+', 1) > 0 end

-- KEYS: stream. ARGV: group, consumer, stats key, delay key, retry key, lease, interval, count, now? (0|1), limit or ''.
-- Moves due retries, and claims up to `count` entries with expired leases if it is time, or `now`. It is time at once while
-- a scan of the pending entries goes on, after `interval` while anything is pending, and else not before the lease of an
-- entry that is delivered from now on could expire. If the clock is past `limit`, it has jumped: no lease counts as
-- expired, and only entries that were handed back are claimed. A consumer whose pod is gone for good claims nothing.
-- Returns {moved, [{id, counter, fields} of the stream], [the same of the retry stream], ms until the next sweep, the time
-- if there was a limit}.
local function sweep(keys, args)
  local key, group, consumer, stats, delay_key, retry_key = keys[1], args[1], args[2], args[3], args[4], args[5]
  local lease, interval, count = tonumber(args[6]), tonumber(args[7]), tonumber(args[8])
  local now = now_ms()
  local idle = now > (tonumber(args[10]) or now) and CLAIMABLE or lease
  if is_leaving(stats, consumer) then idle = NEVER end
  local moved = move_due(delay_key, retry_key, now, PAGE)
  local rest = math.max(interval, math.min(lease, REST))
  local wait = (tonumber(redis.call('HGET', stats, 'sweep:due')) or 0) - now
  local stalled, retries = {}, {}
  -- a wait longer than any means that the clock was set back
  if args[9] == '1' or wait <= 0 or wait > rest then
    wait = 0
    if count > 0 then
      local main_ended, retries_ended
      stalled, main_ended = claim_stalled(key, group, consumer, stats, false, idle, count)
      retries, retries_ended = claim_stalled(retry_key, group, consumer, stats, true, idle, count - #stalled)
      if main_ended and retries_ended then
        wait = (is_pending(key, group) or is_pending(retry_key, group)) and interval or rest
      end
      redis.call('HSET', stats, 'sweep:due', string.format('%.0f', now + wait))
    end
  end
  local first = redis.call('ZRANGE', delay_key, 0, 0, 'WITHSCORES')
  if first[2] then wait = math.max(math.min(wait, tonumber(first[2]) - now), 0) end
  -- callers of an earlier revision name no limit, and expect no time
  return {moved, stalled, retries, wait, args[10] and now}
end

redis.register_function{function_name = 'as1_sweep', callback = sweep, flags = {'allow-oom'}}
