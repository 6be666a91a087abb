-- Claims entries for consumers, renews their leases, and hands entries back.

-- Adds to `entries` those of `ids` that are pending, as {id, counter, fields}, with the size in place of the fields of one that
-- is too large; those that were trimmed are counted.
local function read_owned(entries, key, group, stats, from_retry, ids, left)
  for _, id in ipairs(ids) do
    local p = redis.call('XPENDING', key, group, id, id, 1)
    local e = redis.call('XRANGE', key, id, id)
    if #e == 0 then
      count_trimmed(key, group, stats, from_retry, id)
    elseif #p > 0 then
      local size = size_of(e[1][2])
      entries[#entries + 1] = {id, p[1][4], size > LARGEST and size or e[1][2]}
      spend(left, size)
    end
  end
end

-- KEYS: stream. ARGV: group, consumer, stats key, retry stream? (0|1), holder, start id, count.
-- Claims the entries from `start` on that `holder` has, this consumer itself or one whose process has ended: up to `count`,
-- at most a page. Returns {next start or '', [{id, counter, fields}]}.
local function take(keys, args)
  count_of(args, 8, 1, 0, 0)
  check_length(args[2], LONGEST_NAME)
  local key, group, consumer, stats, from_retry = keys[1], args[1], args[2], args[3], flag(args[4])
  local holder, start, count = args[5], args[6], math.max(math.min(number_in(args[7], 0, MOST), PAGE), 1)
  if start ~= '-' then check_id(start) end
  local page = redis.call('XPENDING', key, group, start, '+', count, holder)
  local next_start = #page == count and after(page[count][1]) or ''
  local entries, left = {}, allowance()
  for _, p in ipairs(page) do
    if left.bytes <= 0 then
      next_start = p[1]
      break
    end
    -- its own, too: other consumers would soon claim one whose lease has nearly expired
    redis.call('XCLAIM', key, group, consumer, 0, p[1], 'JUSTID')
    read_owned(entries, key, group, stats, from_retry, {p[1]}, left)
  end
  return {next_start, entries}
end

-- Checks the consumer and whether it is a retry stream; and that from `args[first]` on, ids and counters follow.
local function check_held(args, first)
  count_of(args, first, 2, 1, PAGE)
  check_length(args[2], LONGEST_NAME)
  flag(args[4])
  for i = first, #args, 2 do
    check_id(args[i])
    number_in(args[i + 1], 0, MOST)
  end
end

-- Claims again each entry, from `args[first]` on, that this consumer holds at the counter given with it, except those for
-- which `unless(pending)` is true; `how(counter)` returns XCLAIM's options. Returns a code for each.
local function claim_again(keys, args, first, how, unless)
  local key, group, consumer, stats, from_retry, replies = keys[1], args[1], args[2], args[3], args[4] == '1', {}
  for i = first, #args, 2 do
    local counter = tonumber(args[i + 1])
    local code, pending = held(key, group, consumer, args[i], counter)
    if code == DONE and not (unless and unless(pending)) then
      code = hold_on(key, group, consumer, stats, from_retry, args[i], how(counter))
    end
    replies[#replies + 1] = code
  end
  return replies
end

-- KEYS: stream. ARGV: group, consumer, stats key, retry stream? (0|1), id, counter, ...
-- Counts an attempt: the delivery counter grows by one. Returns the new counter of each entry, 0 if it was lost.
local function begin(keys, args)
  check_held(args, 5)
  local replies = claim_again(keys, args, 5, function(counter) return 'RETRYCOUNT', counter + 1 end)
  for n, code in ipairs(replies) do
    replies[n] = code == DONE and tonumber(args[4 + 2 * n]) + 1 or 0
  end
  return replies
end

-- KEYS: stream. ARGV: group, consumer, stats key, retry stream? (0|1), lease, id, counter, ...
-- Renews the leases, except of entries that are nobody's by now. Returns a code for each.
local function renew(keys, args)
  check_held(args, 6)
  local now = now_ms()
  hear(args[3], number_in(args[5], 0, LONGEST), now)
  return claim_again(keys, args, 6, function() end, function(pending) return pending[3] >= nobodys_idle(now) end)
end

-- Moves an entry with a begun attempt to the group's retry stream, where any consumer reads it. The attempt is taken back;
-- the fence is not, as the handler may have written something under it. Returns a code.
local function pass_on(key, group, consumer, stats, from_retry, parked, retry_key, id, counter, left)
  local code, fields, x = take_up(key, group, consumer, id, counter, stats, from_retry)
  if code ~= DONE then return code end
  x.attempts = math.max((x.attempts or 0) + counter - 1, 0)
  add_header(fields, x)
  redis.call('XADD', retry_key, '*', unpack(fields))
  spend(left, size_of(fields))
  settled(key, group, stats, from_retry, {id})
  tally(stats, 'released', 1)
  note_retry(parked, x)
  return DONE
end

-- KEYS: stream. ARGV: group, consumer, stats key, retry stream? (0|1), parked key or '', retry key,
-- state (begun|delivered|claimed), id, counter, ...
-- Hands back entries that a handler has begun, that were delivered and counted but not begun, or that were claimed and not
-- counted. Returns a code for each; with large entries that a handler has begun, only for the first ones.
local function release(keys, args)
  check_held(args, 8)
  local state, replies = args[7], {}
  if state ~= 'begun' and state ~= 'delivered' and state ~= 'claimed' then refuse('ERR unknown state') end
  if state ~= 'begun' then
    look_from_the_start(args[3])
    return claim_again(keys, args, 8, function(counter)
      return 'TIME', NOBODYS, 'RETRYCOUNT', state == 'delivered' and math.max(counter - 1, 0) or counter
    end)
  end
  local left = allowance()
  for i = 8, #args, 2 do
    if left.bytes <= 0 then break end
    replies[#replies + 1] = pass_on(
      keys[1], args[1], args[2], args[3], args[4] == '1', args[5], args[6], args[i], tonumber(args[i + 1]), left)
  end
  return replies
end

register('as1_take', take, {'allow-oom'})
register('as1_begin', begin, {'allow-oom'})
register('as1_renew', renew, {'allow-oom'})
register('as1_release', release, {'allow-oom'})
