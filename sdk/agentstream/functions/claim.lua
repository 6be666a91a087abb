-- How entries change hands, and how consumers keep what they hold.

-- What this consumer now owns of `ids`, as {id, counter, fields}; entries that are no more are counted as trimmed.
local function owned(key, group, stats, from_retry, ids)
  local entries = {}
  for _, id in ipairs(ids) do
    local p = redis.call('XPENDING', key, group, id, id, 1)
    local e = redis.call('XRANGE', key, id, id)
    if #e == 0 then
      count_trimmed(key, group, stats, from_retry, id)
    elseif #p > 0 then
      entries[#entries + 1] = {id, p[1][4], e[1][2]}
    end
  end
  return entries
end

-- KEYS: stream. ARGV: group, consumer, stats key, retry stream? (0|1), prefix, start id, count.
-- What this consumer owns already, and what other names with the same prefix (earlier processes of its pod) hold,
-- from `start` on. Returns {next start or '', [{id, counter, fields}]}.
local function take(keys, args)
  local key, group, consumer, stats, from_retry = keys[1], args[1], args[2], args[3], args[4] == '1'
  local prefix, start, count = args[5], args[6], tonumber(args[7])
  local summary = redis.call('XPENDING', key, group)
  local ids = {}
  local more = false
  for _, entry in ipairs(summary[4] or {}) do
    local name = entry[1]
    if name == consumer or is_of_pod(name, prefix) then
      local pending = redis.call('XPENDING', key, group, start, '+', count, name)
      more = more or #pending == count
      for _, p in ipairs(pending) do
        -- its own, too: a lease that has nearly run out would be claimed by others at once
        redis.call('XCLAIM', key, group, consumer, 0, p[1], 'JUSTID')
        ids[#ids + 1] = p[1]
      end
    end
  end
  table.sort(ids, less)
  -- each name was read up to `count`: only ids up to the `count`-th are known to be complete
  local next_start = ''
  if more then
    next_start = after(ids[count])
    for i = #ids, count + 1, -1 do ids[i] = nil end
  end
  return {next_start, owned(key, group, stats, from_retry, ids)}
end

-- Claims each entry again that this consumer holds at the counter that goes with it, from `args[first]` on, unless that is
-- not wanted for a pending entry; `how` gives XCLAIM's options for a counter. Returns a code for each.
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
-- A handler starts: the delivery counter grows by one. Returns for each the new counter, or 0 where this consumer no
-- longer holds the entry.
local function begin(keys, args)
  local replies = claim_again(keys, args, 5, function(counter) return 'RETRYCOUNT', counter + 1 end)
  for n, code in ipairs(replies) do
    replies[n] = code == DONE and tonumber(args[4 + 2 * n]) + 1 or 0
  end
  return replies
end

local function is_anybodys(pending) return pending[3] >= CLAIMABLE end

-- KEYS: stream. ARGV: group, consumer, stats key, retry stream? (0|1), id, counter, ... Renews the lease, but not of what
-- is anybody's: it was handed back while this call was under way, or freed. Returns a code for each.
local function renew(keys, args)
  return claim_again(keys, args, 5, function() end, is_anybodys)
end

-- Puts what a handler had begun onto the group's retry stream, for whoever reads it first. The attempt is taken back, the
-- fence is not: the handler may have written something under it. Returns a code.
local function pass_on(key, group, consumer, stats, from_retry, parked, retry_key, id, counter)
  local code, fields, x = take_up(key, group, consumer, id, counter, stats, from_retry)
  if code ~= DONE then return code end
  x.attempts = (from_retry and tonumber(x.attempts) or 0) + counter - 1
  add_header(fields, x)
  redis.call('XADD', retry_key, '*', unpack(fields))
  settled(key, group, stats, from_retry, {id})
  if parked ~= '' then redis.call('HSET', parked, x.origin, 'retrying') end
  return DONE
end

-- KEYS: stream. ARGV: group, consumer, stats key, retry stream? (0|1), parked key or '', retry key,
-- state (begun|delivered|claimed), id, counter, ... Hands back what the consumer's handlers had begun, what was delivered
-- and counted but not begun, or what was claimed and not counted. Returns a code for each.
local function release(keys, args)
  local state, replies = args[7], {}
  if state ~= 'begun' then
    look_from_the_start(args[3])
    return claim_again(keys, args, 8, function(counter)
      return 'IDLE', CLAIMABLE, 'RETRYCOUNT', state == 'delivered' and math.max(counter - 1, 0) or counter
    end)
  end
  for i = 8, #args, 2 do
    replies[#replies + 1] = pass_on(
      keys[1], args[1], args[2], args[3], args[4] == '1', args[5], args[6], args[i], tonumber(args[i + 1]))
  end
  return replies
end

redis.register_function{function_name = 'as1_take', callback = take, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_begin', callback = begin, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_renew', callback = renew, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_release', callback = release, flags = {'allow-oom'}}
