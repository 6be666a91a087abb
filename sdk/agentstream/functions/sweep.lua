-- Sweeping: whichever consumer of a group looks first moves what is due, and takes over what nobody looks after.

-- The longest time, in ms, for which nobody looks where nothing is pending or about to be due.
local REST = 10000
-- Pending entries that one call looks at before others get their turn on the server.
local SCAN = 5000
-- Nothing has been idle for so many ms.
local NEVER = 1000000000000000

-- Puts retries that are due onto the retry stream. Returns how many.
local function move_due(delay_key, retry_key, now, limit)
  local due = redis.call('ZRANGE', delay_key, '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
  for _, member in ipairs(due) do
    redis.call('XADD', retry_key, '*', unpack(cmsgpack.unpack(member)[3]))
    redis.call('ZREM', delay_key, member)
  end
  return #due
end

-- Claims up to `count` entries that nobody renewed for a lease, from where the group's last call stopped. Returns them,
-- and whether this pass over the pending entries came to its end.
local function claim_stalled(key, group, consumer, stats, from_retry, lease, count)
  local cursor_field, settled_field = 'sweep:main', 'settled'
  if from_retry then cursor_field, settled_field = 'sweep:retry', 'resettled' end
  local start = redis.call('HGET', stats, cursor_field) or '0-0'
  local cursor, ids, looked, trimmed = start, {}, 0, 0
  while #ids < count and looked < SCAN do
    local wanted = count - #ids
    -- JUSTID: being claimed is no attempt; an attempt is counted when a handler starts
    local claimed = redis.call('XAUTOCLAIM', key, group, consumer, lease, cursor, 'COUNT', wanted, 'JUSTID')
    -- the server looks at up to ten times as many as it is to claim
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
-- Moves due retries, and claims up to `count` stalled entries where it is time for it, or `now`. It is time at once while
-- a pass over what is pending is not at its end, after `interval` while anything is pending, and else not before
-- something that is delivered from now on could stall. When the clock is past `limit`, which the caller did not expect,
-- no lease counts as run out: only what was handed back is claimed. A consumer that is leaving claims nothing. Returns
-- {moved, [{id, counter, fields} of the stream], [the same of the retry stream], ms after which to call again, what the
-- clock shows, if there was a limit}.
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
  -- a clock that was set back must not stop sweeping
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
  -- a caller of an earlier revision expects no more than it knows
  return {moved, stalled, retries, wait, args[10] and now}
end

redis.register_function{function_name = 'as1_sweep', callback = sweep, flags = {'allow-oom'}}
