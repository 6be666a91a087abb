-- Sweeps a group: moves retries that are due, and claims entries with expired leases. Any consumer of the group does it.

-- The longest time between two sweeps, in ms, while nothing is pending or delayed.
local REST = 10000
-- The most pending entries that one call scans, as other clients wait meanwhile.
local SCAN = 5000
-- Longer, in ms, than any entry has been idle.
local NEVER = 1000000000000000

-- When the next retry is due; nil if none is delayed.
local function next_due(delay_key) return tonumber(redis.call('ZRANGE', delay_key, 0, 0, 'WITHSCORES')[2]) end

-- The fields of a delayed retry, and for how many ms it was delayed; nil if the member is none.
local function delayed(member)
  local read, retry = pcall(cmsgpack.unpack, member)
  local fields = read and type(retry) == 'table' and retry[3]
  if type(fields) ~= 'table' or #fields < 2 or #fields > 2 * MOST_FIELDS + 2 or #fields % 2 == 1 then return nil end
  for _, part in ipairs(fields) do
    if type(part) ~= 'string' then return nil end
  end
  return fields, whole(retry[4]) or 0
end

-- Takes off a member that is no delayed retry, and counts it.
local function drop_delayed(stats, delay_key, member)
  redis.call('ZREM', delay_key, member)
  tally(stats, 'unreadable', 1)
end

-- Moves up to `limit` retries that are due to the retry stream, as far as `left` allows. Returns their number, and whether
-- there may be more.
local function move_due(stats, delay_key, retry_key, now, limit, left)
  local n = 0
  while n < limit and left.bytes > 0 do
    local few = next_few(left, limit - n)
    local due = redis.call('ZRANGE', delay_key, '-inf', now, 'BYSCORE', 'LIMIT', 0, few)
    for _, member in ipairs(due) do
      local fields = delayed(member)
      if fields then
        redis.call('XADD', retry_key, '*', unpack(fields))
        redis.call('ZREM', delay_key, member)
      else
        drop_delayed(stats, delay_key, member)
      end
      spend(left, #member)
    end
    n = n + #due
    if #due < few then return n, false end
  end
  return n, true
end

-- Retries that were delayed while the clock was ahead would wait for it, after it was set back, and what has the same ordering
-- keys, too. Sees to it that each waits from now on for no longer than when it was delayed: looks at the last ones first, from
-- where the last call stopped, as far as `left` allows. Returns whether there is more to look at.
local function mend(stats, delay_key, now, left)
  local last = whole(redis.call('HGET', stats, 'sweep:delayed')) or 0
  if last <= now + SET_BACK then return false end
  -- so many of the last ones are right
  local right = whole(redis.call('HGET', stats, 'sweep:mend')) or 0
  local page
  repeat
    page = redis.call('ZRANGE', delay_key, right, right + next_few(left, PAGE) - 1, 'REV', 'WITHSCORES')
    for i = 1, #page, 2 do
      local fields, delay = delayed(page[i])
      local latest = now + (delay or 0)
      if not fields then
        drop_delayed(stats, delay_key, page[i])
      elseif tonumber(page[i + 1]) > latest then
        redis.call('ZADD', delay_key, string.format('%.0f', latest), page[i])
      else
        right = right + 1
      end
      -- something for each, however small they are
      spend(left, #page[i] + 200)
    end
    if #page == 0 or tonumber(page[#page]) <= now then
      redis.call('HSET', stats, 'sweep:delayed', string.format('%.0f', now), 'sweep:mend', '0')
      return false
    end
  until left.bytes <= 0
  redis.call('HSET', stats, 'sweep:mend', string.format('%.0f', right))
  return true
end

-- What was renewed while the clock was ahead would be leased until it is there again, after it was set back. Sees to it that
-- these leases begin now: looks at a page of the pending entries, from where the last call stopped. Returns whether there is
-- more to look at.
local function set_leases_back(key, group, stats, from_retry)
  local field = from_retry and 'sweep:retries-ahead' or 'sweep:ahead'
  local at = redis.call('HGET', stats, field) or ''
  if not is_id(at) then return false end
  local page = redis.call('XPENDING', key, group, at, '+', PAGE)
  for _, p in ipairs(page) do
    -- the server tells no time below this one
    if p[3] == 0 then hold_on(key, group, p[2], stats, from_retry, p[1]) end
  end
  local has_more = #page == PAGE
  redis.call('HSET', stats, field, has_more and after(page[PAGE][1]) or '')
  return has_more
end

-- Claims up to `count` entries whose lease has expired, from where the group's last call stopped, as far as `left` allows.
-- Returns them, and whether all pending entries have been scanned.
local function claim_stalled(key, group, consumer, stats, from_retry, lease, count, left)
  local cursor_field, settled_field = 'sweep:main', 'settled'
  if from_retry then cursor_field, settled_field = 'sweep:retry', 'resettled' end
  local start = cursor_of(stats, cursor_field)
  local cursor, entries, claims, looked, trimmed = start, {}, 0, 0, 0
  while claims < count and looked < SCAN and left.bytes > 0 do
    local wanted = next_few(left, count - claims)
    -- JUSTID leaves the delivery counter: as1_begin counts the attempt when a handler starts
    local claimed = redis.call('XAUTOCLAIM', key, group, consumer, lease, cursor, 'COUNT', wanted, 'JUSTID')
    -- the server scans up to ten times as many entries as it is to claim
    cursor, looked, trimmed = claimed[1], looked + 10 * wanted, trimmed + #claimed[3]
    claims = claims + #claimed[2]
    read_owned(entries, key, group, stats, from_retry, claimed[2], left)
    if cursor == '0-0' then break end
  end
  if cursor ~= start then redis.call('HSET', stats, cursor_field, cursor) end
  if trimmed > 0 then
    tally(stats, 'trimmed', trimmed)
    tally(stats, settled_field, trimmed)
  end
  return entries, looked > 0 and cursor == '0-0'
end

local function is_pending(key, group) return #redis.call('XPENDING', key, group, '-', '+', 1) > 0 end

-- KEYS: stream. ARGV: group, consumer, stats key, delay key, retry key, lease, interval, count, now? (0|1).
-- Moves a page of due retries, and claims up to `count` entries, at most a page, whose leases have run out if it is time, or
-- `now`. It is time at once while a scan of the pending entries goes on, after `interval` while anything is pending, and else
-- not before the lease of an entry that is delivered from now on could run out. A consumer whose pod is gone for good claims
-- nothing.
-- Returns {moved, [{id, counter, fields} of the stream], [the same of the retry stream], ms until the next call, by which a
-- consumer is heard in time, too}; 0 ms while there is more to claim, but not for retries that are due.
local function sweep(keys, args)
  count_of(args, 10, 1, 0, 0)
  check_length(args[2], LONGEST_NAME)
  local key, group, consumer, stats, delay_key, retry_key = keys[1], args[1], args[2], args[3], args[4], args[5]
  local lease, interval, count = number_in(args[6], 0, LONGEST), number_in(args[7], 0, LONGEST), math.min(number_in(args[8], 0, MOST), PAGE)
  local at_once, now = flag(args[9]), now_ms()
  local silent, silent_until = hear(stats, lease, now)
  local mending = mend(stats, delay_key, now, allowance())
  mending = set_leases_back(key, group, stats, false) or mending
  mending = set_leases_back(retry_key, group, stats, true) or mending
  local due, moved = next_due(delay_key), 0
  if due and due <= now then
    moved = move_due(stats, delay_key, retry_key, now, PAGE, allowance())
    due = next_due(delay_key)
  end
  local rest = math.max(interval, math.min(lease, REST))
  local wait = (whole(redis.call('HGET', stats, 'sweep:due')) or 0) - now
  local stalled, retries = {}, {}
  -- a wait longer than any means that the clock was set back
  if at_once or wait <= 0 or wait > rest then
    wait = 0
    if count > 0 then
      local idle = is_leaving(stats, consumer) and NEVER or claimable_idle(lease, silent, now)
      local left, main_ended, retries_ended = allowance()
      stalled, main_ended = claim_stalled(key, group, consumer, stats, false, idle, count, left)
      -- one after the other: scans of both that end in different calls might never end in the same one
      if main_ended then
        retries, retries_ended = claim_stalled(retry_key, group, consumer, stats, true, idle, count - #stalled, left)
      end
      if main_ended and retries_ended then
        wait = (is_pending(key, group) or is_pending(retry_key, group)) and interval or rest
      end
      if silent > 0 then wait = math.min(wait, math.ceil(silent_until + lease / 2 - now)) end
      redis.call('HSET', stats, 'sweep:due', string.format('%.0f', now + wait))
    end
  end
  if mending then due = now end
  if due then wait = math.min(wait, math.max(due - now, 1)) end
  return {moved, stalled, retries, math.min(wait, longest_wait(lease))}
end

register('as1_sweep', sweep, {'allow-oom'})
