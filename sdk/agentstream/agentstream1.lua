#!lua name=agentstream1
-- What must happen atomically on the server, for agents and for the operator.
--
-- `1` in the library's and the functions' names is the number of this interface: within it, changes are
-- backward compatible and only raise REVISION; an incompatible change is a new library beside this one.
-- A function runs with the rights of its caller. The declared key is always the stream itself; keys derived from
-- it go in as arguments, so that each of the caller's selectors decides about its own (DESIGN: access).
-- Error replies are constant text. Times are milliseconds of the server's clock.
local REVISION = 1

local DONE, GONE, TAKEN, TRIMMED = 1, 0, -1, -2
-- A day: longer than any lease, so an entry with this idle time is anybody's; XCLAIM ignores an IDLE past the epoch.
local CLAIMABLE = 86400000
local PAGE = 500
local LAST_SEQUENCE = '18446744073709551615'
-- Upper bounds, in ms, of the latency buckets; the last bucket is unbounded.
local BOUNDS = {1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 2000, 5000, 10000, 30000,
  60000, 300000}

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function ms_of(id) return tonumber(string.match(id, '^(%d+)')) end

-- Ids are compared and counted as digits: each of their parts has 64 bits, a Lua number only 53.
local function parts(id) return string.match(id, '^(%d+)-(%d+)$') end

local function below(a, b) return #a < #b or (#a == #b and a < b) end

local function increment(digits)
  local head, nines = string.match(digits, '^(.-)(9*)$')
  local carried = head == '' and '1' or string.sub(head, 1, -2) .. string.byte(head, -1) - 47
  return carried .. string.rep('0', #nines)
end

local function decrement(digits)
  local head, zeros = string.match(digits, '^(.-)(0*)$')
  local lowered = string.sub(head, 1, -2) .. string.byte(head, -1) - 49 .. string.rep('9', #zeros)
  return (string.gsub(lowered, '^0+(%d)', '%1'))
end

local function less(a, b)
  local am, as = parts(a)
  local bm, bs = parts(b)
  return below(am, bm) or (am == bm and below(as, bs))
end

local function after(id)
  local ms, seq = parts(id)
  if seq == LAST_SEQUENCE then return increment(ms) .. '-0' end
  return ms .. '-' .. increment(seq)
end

local function before(id)
  local ms, seq = parts(id)
  if seq ~= '0' then return ms .. '-' .. decrement(seq) end
  if ms == '0' then return '0-0' end
  return decrement(ms) .. '-' .. LAST_SEQUENCE
end

local function map(flat)
  local m = {}
  for i = 1, #flat, 2 do m[flat[i]] = flat[i + 1] end
  return m
end

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

-- Whether `prefix` is `<pod>.` and the consumer a process of this pod; a pod's name may have dots of its own.
local function is_of_pod(name, prefix)
  return prefix ~= '' and string.sub(name, 1, #prefix) == prefix and not string.find(name, '.', #prefix + 1, true)
end

-- Claims an entry that this consumer holds already, with further options of XCLAIM. The server drops one that was
-- trimmed meanwhile. Returns a code.
local function hold_on(key, group, consumer, stats, from_retry, id, ...)
  local claimed = redis.call('XCLAIM', key, group, consumer, 0, id, 'JUSTID', ...)
  if #claimed > 0 then return DONE end
  count_trimmed(key, group, stats, from_retry, id)
  return TRIMMED
end

local function bucket(ms)
  for _, bound in ipairs(BOUNDS) do
    if ms <= bound then return 'le:' .. bound end
  end
  return 'le:inf'
end

local function revision() return REVISION end

-- KEYS: stream. ARGV: gate key, once key or '', once lifetime, field, value, ...
local function add(keys, args)
  local key, gate_key, once_key, lifetime = keys[1], args[1], args[2], args[3]
  if once_key ~= '' then
    local known = redis.call('GET', once_key)
    if known then return known end
  end
  local gate = redis.call('GET', gate_key)
  if gate and redis.call('XLEN', key) >= tonumber(gate) then
    return redis.error_reply('BACKPRESSURE the stream holds as many unsettled entries as it may')
  end
  local id = redis.call('XADD', key, 'NOMKSTREAM', '*', unpack(args, 4))
  if not id then return redis.error_reply('NOSTREAM the stream does not exist') end
  if once_key ~= '' then redis.call('SET', once_key, id, 'PX', lifetime) end
  return id
end

-- KEYS: stream. ARGV: group, consumer, stats key, parked key or '', retry stream? (0|1), outcome (acked|skipped),
-- id, counter, ... Returns DONE, GONE or TAKEN for each.
local function settle(keys, args)
  local key, group, consumer, stats, parked = keys[1], args[1], args[2], args[3], args[4]
  local from_retry, outcome = args[5] == '1', args[6]
  local now, replies, ids, latencies = now_ms(), {}, {}, {}
  for i = 7, #args, 2 do
    local id = args[i]
    local code = held(key, group, consumer, id, tonumber(args[i + 1]))
    replies[#replies + 1] = code
    if code == DONE then
      local origin = id
      if from_retry then
        local e = redis.call('XRANGE', key, id, id)
        origin = e[1] and header(e[1][2]).origin or id
        if parked ~= '' then redis.call('HDEL', parked, origin) end
      end
      ids[#ids + 1] = id
      local b = bucket(now - ms_of(origin))
      latencies[b] = (latencies[b] or 0) + 1
    end
  end
  if #ids > 0 then
    settled(key, group, stats, from_retry, ids)
    redis.call('HINCRBY', stats, outcome, #ids)
    if outcome == 'acked' then
      for b, n in pairs(latencies) do redis.call('HINCRBY', stats, b, n) end
    end
  end
  return replies
end

-- The entry that this consumer is about to give up or retry: code, fields without header, header.
local function take_up(key, group, consumer, id, counter, stats, from_retry)
  local code = held(key, group, consumer, id, counter)
  if code ~= DONE then return code end
  local e = redis.call('XRANGE', key, id, id)
  if #e == 0 then
    count_trimmed(key, group, stats, from_retry, id)
    return TRIMMED
  end
  local x = header(e[1][2])
  x.origin = x.origin or id
  return DONE, without_header(e[1][2]), x
end

-- KEYS: stream. ARGV: group, consumer, stats key, parked key or '', retry stream? (0|1), id, counter,
-- delay key, retry key, delay in ms, attempts so far, reason, error. Returns a code.
local function retry(keys, args)
  local key, group, consumer, stats, parked = keys[1], args[1], args[2], args[3], args[4]
  local from_retry, id, counter = args[5] == '1', args[6], tonumber(args[7])
  local delay_key, retry_key, delay = args[8], args[9], tonumber(args[10])
  local code, fields, x = take_up(key, group, consumer, id, counter, stats, from_retry)
  if code ~= DONE then return code end
  x.attempts, x.reason, x.error = tonumber(args[11]), args[12], args[13]
  fields[#fields + 1] = 'x'
  fields[#fields + 1] = cjson.encode(x)
  if delay > 0 then
    -- the member holds the whole entry, since the stream may be trimmed meanwhile; origin and attempts keep it apart
    redis.call('ZADD', delay_key, now_ms() + delay, cmsgpack.pack({x.origin, x.attempts, fields}))
  else
    redis.call('XADD', retry_key, '*', unpack(fields))
  end
  settled(key, group, stats, from_retry, {id})
  redis.call('HINCRBY', stats, 'retried', 1)
  if parked ~= '' then redis.call('HSET', parked, x.origin, 'retrying') end
  return DONE
end

-- Writes a dead letter: the fields of the entry, then why and after what.
local function bury(dlq_key, stats, parked, fields, x, attempts, reason, err)
  local letter = fields
  for _, v in ipairs({'origin', x.origin, 'attempts', attempts, 'reason', reason, 'error', err}) do
    letter[#letter + 1] = v
  end
  local id = redis.call('XADD', dlq_key, '*', unpack(letter))
  redis.call('HINCRBY', stats, 'dead', 1)
  if parked ~= '' then redis.call('HSET', parked, x.origin, 'dead') end
  return id
end

-- KEYS: stream. ARGV: group, consumer, stats key, parked key or '', retry stream? (0|1), id, counter,
-- dead letter key, attempts so far, reason, error. Returns a code.
local function dead_letter(keys, args)
  local key, group, consumer, stats, parked = keys[1], args[1], args[2], args[3], args[4]
  local from_retry, id, counter = args[5] == '1', args[6], tonumber(args[7])
  local code, fields, x = take_up(key, group, consumer, id, counter, stats, from_retry)
  if code ~= DONE then return code end
  bury(args[8], stats, parked, fields, x, args[9], args[10], args[11])
  settled(key, group, stats, from_retry, {id})
  return DONE
end

-- Puts retries that are due onto the retry stream. Returns how many.
local function move_due(delay_key, retry_key, now, limit)
  local due = redis.call('ZRANGE', delay_key, '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)
  for _, member in ipairs(due) do
    redis.call('XADD', retry_key, '*', unpack(cmsgpack.unpack(member)[3]))
    redis.call('ZREM', delay_key, member)
  end
  return #due
end

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

-- Claims, from where the group's last sweep stopped, up to `count` entries that nobody renewed for a lease.
local function claim_stalled(key, group, consumer, stats, from_retry, lease, count)
  local cursor_field = from_retry and 'sweep:retry' or 'sweep:main'
  local cursor = redis.call('HGET', stats, cursor_field) or '0-0'
  -- JUSTID: being claimed is no attempt; an attempt is counted when a handler starts
  local claimed = redis.call('XAUTOCLAIM', key, group, consumer, lease, cursor, 'COUNT', count, 'JUSTID')
  if claimed[1] ~= cursor then redis.call('HSET', stats, cursor_field, claimed[1]) end
  if #claimed[3] > 0 then
    redis.call('HINCRBY', stats, 'trimmed', #claimed[3])
    redis.call('HINCRBY', stats, from_retry and 'resettled' or 'settled', #claimed[3])
  end
  return owned(key, group, stats, from_retry, claimed[2])
end

-- KEYS: stream. ARGV: group, consumer, stats key, delay key, retry key, lease, interval, count.
-- Moves due retries; unless the group was swept within `interval`, claims stalled entries, at most `count` of each
-- stream. Returns {moved, [{id, counter, fields} of the stream], [the same of the retry stream]}.
local function sweep(keys, args)
  local key, group, consumer, stats, delay_key, retry_key = keys[1], args[1], args[2], args[3], args[4], args[5]
  local lease, interval, count = tonumber(args[6]), tonumber(args[7]), tonumber(args[8])
  local now = now_ms()
  local moved = move_due(delay_key, retry_key, now, PAGE)
  local last = tonumber(redis.call('HGET', stats, 'sweep:at') or 0)
  -- a clock that was set back must not stop sweeping
  if count == 0 or (now - last < interval and now >= last) then return {moved, {}, {}} end
  redis.call('HSET', stats, 'sweep:at', string.format('%.0f', now))
  return {
    moved,
    claim_stalled(key, group, consumer, stats, false, lease, count),
    claim_stalled(retry_key, group, consumer, stats, true, lease, count),
  }
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

-- Claims each entry again that this consumer holds at the counter that goes with it, from `args[first]` on; `how` gives
-- XCLAIM's options for a counter. Returns a code for each.
local function claim_again(keys, args, first, how)
  local key, group, consumer, stats, from_retry, replies = keys[1], args[1], args[2], args[3], args[4] == '1', {}
  for i = first, #args, 2 do
    local counter = tonumber(args[i + 1])
    local code = held(key, group, consumer, args[i], counter)
    if code == DONE then code = hold_on(key, group, consumer, stats, from_retry, args[i], how(counter)) end
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

-- KEYS: stream. ARGV: group, consumer, stats key, retry stream? (0|1), id, counter, ... Renews the lease.
-- Returns a code for each.
local function renew(keys, args)
  return claim_again(keys, args, 5, function() end)
end

-- KEYS: stream. ARGV: group, consumer, stats key, retry stream? (0|1), take back the attempt? (0|1), id, counter, ...
-- Hands back: claimable at once. The attempt is taken back where the counter has one that no handler began.
-- Returns a code for each.
local function release(keys, args)
  return claim_again(keys, args, 6, function(counter)
    return 'IDLE', CLAIMABLE, 'RETRYCOUNT', args[5] == '1' and math.max(counter - 1, 0) or counter
  end)
end

-- How many entries a group was not delivered yet, whatever the server's own lag says: {n, exact?, oldest id or nil}.
-- The server's lag is NULL or wrong after deletions, trims and groups at ids of their own.
local function undelivered(key, info, g, trusted)
  if not less(g['last-delivered-id'], info['last-generated-id']) then return 0, true end
  local nxt = redis.call('XRANGE', key, '(' .. g['last-delivered-id'], '+', 'COUNT', 1)
  if #nxt == 0 then return 0, true end
  local oldest = nxt[1][1]
  if oldest == info['first-entry'][1] then return info.length, true, oldest end
  local native = g.lag
  if native and trusted then return math.min(native, info.length), true, oldest end
  local n, from = 0, oldest
  while n < 2 * PAGE do
    local page = redis.call('XRANGE', key, from, '+', 'COUNT', PAGE)
    n = n + #page
    if #page < PAGE then return n, true, oldest end
    from = '(' .. page[#page][1]
  end
  local first, last = ms_of(info['first-entry'][1]), ms_of(info['last-generated-id'])
  local guess = native and math.min(native, info.length)
    or math.floor(info.length * (last - ms_of(oldest)) / math.max(last - first, 1))
  return math.max(n, guess), false, oldest
end

local function groups_of(key)
  local groups = {}
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local g = map(flat)
    groups[g.name] = g
  end
  return groups
end

local function oldest_pending(key, g)
  if g.pending > 0 then return redis.call('XPENDING', key, g.name)[2] end
end

local function type_of(key) return redis.call('TYPE', key).ok end

-- What belongs to a declared group besides its place on the stream.
local function observe_derived(base, name, o)
  local retry_key, delay_key = base .. ':retry:' .. name, base .. ':delay:' .. name
  if type_of(retry_key) == 'stream' then
    o.retry_length = redis.call('XLEN', retry_key)
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', retry_key)) do
      local g = map(flat)
      if g.name == name then o.retry_ready, o.retry_pending = true, g.pending end
    end
  end
  o.delayed = redis.call('ZCARD', delay_key)
  local due = redis.call('ZRANGE', delay_key, 0, 0, 'WITHSCORES')
  if due[2] then o.next_due = tonumber(due[2]) end
  o.dead = redis.call('XLEN', base .. ':dlq:' .. name)
  o.stats = map(redis.call('HGETALL', base .. ':stats:' .. name))
end

-- KEYS: stream. ARGV: base of derived keys, trust the server's lag? (0|1), declared group, ...
-- Everything that reconciling, measuring and reporting want to know of a stream, as one JSON object.
local function observe(keys, args)
  local key, base, trusted = keys[1], args[1], args[2] == '1'
  local kind = type_of(key)
  local o = {now = now_ms(), type = kind, groups = {}, meta = map(redis.call('HGETALL', base .. ':meta')),
    gate = redis.call('GET', base .. ':gate') or nil}
  if kind == 'stream' then
    local info = map(redis.call('XINFO', 'STREAM', key))
    o.length, o.added, o.last = info.length, info['entries-added'], info['last-generated-id']
    if info['first-entry'] then o.first = info['first-entry'][1] end
    for name, g in pairs(groups_of(key)) do
      local n, exact, oldest = undelivered(key, info, g, trusted)
      o.groups[name] = {exists = true, consumers = g.consumers, pending = g.pending, last = g['last-delivered-id'],
        read = g['entries-read'] or nil, undelivered = n, exact = exact, oldest_undelivered = oldest,
        oldest_pending = oldest_pending(key, g)}
    end
  end
  for i = 3, #args do
    o.groups[args[i]] = o.groups[args[i]] or {exists = false}
    observe_derived(base, args[i], o.groups[args[i]])
  end
  return cjson.encode(o)
end

-- KEYS: stream. ARGV: meta key, field, value, ... Makes an empty stream if there is no key, and records its owner.
-- Returns 1 if the stream is new, 0 if it was there.
local function create_stream(keys, args)
  local key, kind = keys[1], type_of(keys[1])
  if kind ~= 'none' and kind ~= 'stream' then
    return redis.error_reply('WRONGTYPE the key is not a stream')
  end
  if kind == 'none' then
    redis.call('XGROUP', 'CREATE', key, 'agentstream', '$', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', key, 'agentstream')
  end
  redis.call('HSET', args[1], unpack(args, 2))
  return kind == 'none' and 1 or 0
end

-- KEYS: stream. ARGV: base, group, id ('0', '$' or an entry id, whose second part may be left out).
-- Makes the group and its retry stream. Returns 1 if the group on the stream is new, 0 if it was there.
local function create_group(keys, args)
  local key, base, group, id = keys[1], args[1], args[2], args[3]
  if string.match(id, '^%d+$') then id = id .. '-0' end
  local stats, retry_key = base .. ':stats:' .. group, base .. ':retry:' .. group
  if type_of(key) == 'none' then
    return redis.error_reply('NOSTREAM the stream does not exist')
  end
  local retry_made = redis.pcall('XGROUP', 'CREATE', retry_key, group, '0', 'MKSTREAM')
  if retry_made.err and not string.find(retry_made.err, '^BUSYGROUP') then return retry_made end
  local read
  local info = map(redis.call('XINFO', 'STREAM', key))
  local command = {'XGROUP', 'CREATE', key, group, id}
  if id == '$' or not less(id, info['last-generated-id']) then
    -- an id that is still to come would hide entries if the clock was set back
    id, read = info['last-generated-id'], info['entries-added']
    -- without ENTRIESREAD, the server's lag is unknown from the next entry on
    command = {'XGROUP', 'CREATE', key, group, id, 'ENTRIESREAD', read}
  elseif id == '0-0' then
    read = info['entries-added'] - info.length
  end
  local made = redis.pcall(unpack(command))
  if made.err then
    if string.find(made.err, '^BUSYGROUP') then return 0 end
    return made
  end
  redis.call('HSET', base .. ':meta', 'checkpoint:' .. group, id)
  -- from here on, entries read must equal entries settled plus pending; at an id of its own the server cannot count
  if read then
    local so_far = redis.call('HGET', stats, 'settled') or 0
    redis.call('HSET', stats, 'base:read', read, 'base:settled', so_far)
  else
    redis.call('HDEL', stats, 'base:read', 'base:settled')
  end
  return 1
end

-- KEYS: stream. ARGV: base, group. Removes the group with its retries and delays; dead letters stay if there are any.
-- Returns 1 if the group was there, else 0.
local function destroy_group(keys, args)
  local base, group, destroyed = args[1], args[2], 0
  if type_of(keys[1]) == 'stream' then destroyed = redis.call('XGROUP', 'DESTROY', keys[1], group) end
  for _, part in ipairs({':retry:', ':delay:', ':stats:', ':parked:'}) do redis.call('UNLINK', base .. part .. group) end
  if redis.call('XLEN', base .. ':dlq:' .. group) == 0 then redis.call('UNLINK', base .. ':dlq:' .. group) end
  redis.call('HDEL', base .. ':meta', 'checkpoint:' .. group)
  return destroyed
end

-- Whether a group leaves anything delayed, retrying or dead.
local function leaves_work(base, group)
  if redis.call('EXISTS', base .. ':delay:' .. group) == 1 then return true end
  return redis.call('XLEN', base .. ':retry:' .. group) > 0 or redis.call('XLEN', base .. ':dlq:' .. group) > 0
end

-- KEYS: stream. ARGV: base, only if empty? (0|1), group, ... Deletes the stream and what is derived from it, for these
-- groups and all that the stream has or had. Returns 1, or 0 where it was to be empty and is not: something
-- undelivered, pending, delayed, retrying or dead.
local function delete_stream(keys, args)
  local key, base, only_if_empty = keys[1], args[1], args[2] == '1'
  local kind = type_of(key)
  if kind ~= 'stream' and kind ~= 'none' then return 0 end
  local names = {}
  for i = 3, #args do names[args[i]] = true end
  for _, name in ipairs(redis.call('HKEYS', base .. ':meta')) do
    local group = string.match(name, '^checkpoint:(.*)$')
    if group then names[group] = true end
  end
  if kind == 'stream' then
    local info, groups = map(redis.call('XINFO', 'STREAM', key)), groups_of(key)
    -- without a group nothing was ever read
    if only_if_empty and info.length > 0 and not next(groups) then return 0 end
    for name, g in pairs(groups) do
      names[name] = true
      if only_if_empty and (g.pending > 0 or undelivered(key, info, g, false) > 0) then return 0 end
    end
  end
  for name in pairs(names) do
    if only_if_empty and leaves_work(base, name) then return 0 end
  end
  redis.call('UNLINK', key, base .. ':meta', base .. ':gate')
  for name in pairs(names) do
    for _, part in ipairs({':retry:', ':delay:', ':dlq:', ':stats:', ':parked:'}) do
      redis.call('UNLINK', base .. part .. name)
    end
  end
  return 1
end

-- KEYS: stream. ARGV: base, group, prefix. The pod whose consumers' names start with `prefix` is gone: what they hold
-- becomes claimable at once. Returns how many entries.
local function orphan(keys, args)
  local base, group, prefix, n = args[1], args[2], args[3], 0
  for _, key in ipairs({keys[1], base .. ':retry:' .. group}) do
    -- where the group is missing, nobody holds anything
    for _, entry in ipairs(redis.pcall('XPENDING', key, group)[4] or {}) do
      local name, start = entry[1], '-'
      while start and is_of_pod(name, prefix) do
        local page = redis.call('XPENDING', key, group, start, '+', PAGE, name)
        for _, p in ipairs(page) do
          local claimed = redis.call('XCLAIM', key, group, name, 0, p[1], 'IDLE', CLAIMABLE, 'JUSTID')
          -- the server takes an entry that is no more off the group
          if #claimed == 0 then count_trimmed(key, group, base .. ':stats:' .. group, key ~= keys[1], p[1]) end
          n = n + #claimed
        end
        start = #page == PAGE and '(' .. page[#page][1] or nil
      end
    end
  end
  return n
end

-- KEYS: stream. ARGV: base, group, prefix. Removes the consumers of a pod that is gone, if they hold nothing: the server
-- would drop what a removed consumer holds. Returns the removed names.
local function remove_consumers(keys, args)
  local base, group, prefix, holding, places, removed = args[1], args[2], args[3], {}, {}, {}
  for _, key in ipairs({keys[1], base .. ':retry:' .. group}) do
    -- where the group is missing, it has no consumers
    for _, flat in ipairs(redis.pcall('XINFO', 'CONSUMERS', key, group)) do
      local c = map(flat)
      if is_of_pod(c.name, prefix) then
        places[c.name] = places[c.name] or {}
        table.insert(places[c.name], key)
        if c.pending > 0 then holding[c.name] = true end
      end
    end
  end
  for name, streams in pairs(places) do
    if not holding[name] then
      for _, key in ipairs(streams) do redis.call('XGROUP', 'DELCONSUMER', key, group, name) end
      removed[#removed + 1] = name
    end
  end
  return removed
end

-- Entries from the oldest unsettled one to the last delivered one; interpolated where there are too many to count.
local function delivered_since(key, info, oldest, last_delivered)
  local n, from = 0, oldest
  while n < 4 * PAGE do
    local page = redis.call('XRANGE', key, from, last_delivered, 'COUNT', PAGE)
    n = n + #page
    if #page < PAGE then return n end
    from = '(' .. page[#page][1]
  end
  local first, last = ms_of(info['first-entry'][1]), ms_of(info['last-generated-id'])
  return math.max(n, math.floor(info.length * (ms_of(last_delivered) - ms_of(oldest)) / math.max(last - first, 1)))
end

-- A group nobody declared counts while a consumer was seen within a day.
local function is_alive(key, group)
  for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
    if map(flat).idle < CLAIMABLE then return true end
  end
  return false
end

local function set_if_changed(key, value)
  local current = redis.call('GET', key)
  if value then
    value = string.format('%.0f', value)
    if current ~= value then redis.call('SET', key, value) end
  elseif current then
    redis.call('DEL', key)
  end
end

-- Pending entries that are older than the retention and whose consumer let its lease run out become dead letters.
local function expire_pending(key, base, group, lease, cut, parked)
  local n, stats = 0, base .. ':stats:' .. group
  for _, p in ipairs(redis.call('XPENDING', key, group, 'IDLE', lease, '-', cut, PAGE)) do
    local e = redis.call('XRANGE', key, p[1], p[1])
    if #e == 0 then
      count_trimmed(key, group, stats, false, p[1])
    else
      local x = header(e[1][2])
      x.origin = x.origin or p[1]
      bury(base .. ':dlq:' .. group, stats, parked, without_header(e[1][2]), x, p[4], 'Expired',
        'held for longer than retention.minAge while the stream is full')
      settled(key, group, stats, false, {p[1]})
      n = n + 1
    end
  end
  return n
end

-- Trims by length, at the price of what groups have not settled. Counts what each declared group lost unread; what it
-- lost pending is counted when it is swept.
local function trim_oldest(key, base, length, max_length, limit, declared, waiting)
  local trimmed, overrun = redis.call('XTRIM', key, 'MAXLEN', '~', max_length, 'LIMIT', limit), 0
  for _, d in ipairs(declared) do
    local lost = waiting[d.name] - (length - trimmed)
    if lost > 0 then
      redis.call('HINCRBY', base .. ':stats:' .. d.name, 'overrun', lost)
      overrun = overrun + lost
    end
  end
  return trimmed, overrun
end

-- The groups that retention respects, and the first declared one that is missing.
local function counted_groups(key, declared)
  local groups, counted = groups_of(key), {}
  for _, d in ipairs(declared) do
    if not groups[d.name] then return nil, d.name end
    counted[d.name] = groups[d.name]
  end
  for name, g in pairs(groups) do
    if not counted[name] and is_alive(key, name) then counted[name] = g end
  end
  return counted
end

-- Records where a group would have to resume.
local function record_checkpoint(key, base, g, pending)
  local checkpoint = g['last-delivered-id']
  if pending and not less(checkpoint, pending) then checkpoint = before(pending) end
  if redis.call('HGET', base .. ':meta', 'checkpoint:' .. g.name) ~= checkpoint then
    redis.call('HSET', base .. ':meta', 'checkpoint:' .. g.name, checkpoint)
  end
end

-- Trims what is older than `minid`, and in whole nodes, which costs next to nothing; to the entry where `exact`.
local function trim_before(key, minid, limit, exact)
  local trimmed = redis.call('XTRIM', key, 'MINID', '~', minid, 'LIMIT', limit)
  -- less than half of the limit: no more than a part of one node is left to trim
  if exact and trimmed < limit / 2 then trimmed = trimmed + redis.call('XTRIM', key, 'MINID', '=', minid) end
  return trimmed
end

-- KEYS: stream. ARGV: base, retention, max length, max bytes (0: none), on full, limit, trust the server's lag? (0|1),
-- broadcast? (0|1), then of each declared group: name, lease, age of dead letters to keep (0: all, and none are made).
-- Moves due retries, records each group's checkpoint, trims what all groups have settled and the retention allows,
-- and publishes the length at which adding is refused. Returns a JSON object of what it did and saw.
local function janitor(keys, args)
  local key, base, retention, max_length, max_bytes = keys[1], args[1], tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local on_full, limit, trusted, broadcast = args[5], tonumber(args[6]), args[7] == '1', args[8] == '1'
  local now, r = now_ms(), {trimmed = 0, overrun = 0, moved = 0, expired = 0, shortened = false, refusing = false,
    more = false}
  local declared = {}
  for i = 9, #args, 3 do
    declared[#declared + 1] = {name = args[i], lease = tonumber(args[i + 1]), keep_dead = tonumber(args[i + 2])}
  end
  for _, d in ipairs(declared) do
    local moved = move_due(base .. ':delay:' .. d.name, base .. ':retry:' .. d.name, now, PAGE)
    r.moved, r.more = r.moved + moved, r.more or moved == PAGE
  end
  r.type = type_of(key)
  if r.type ~= 'stream' then return cjson.encode(r) end
  local info = map(redis.call('XINFO', 'STREAM', key))
  r.length = info.length
  local counted
  counted, r.missing = counted_groups(key, declared)
  -- where a missing group will resume is not known, so nothing may go
  if r.missing then return cjson.encode(r) end
  -- a clock that jumped ahead trims nothing before new entries arrive at the new time
  local clock = math.min(now, ms_of(info['last-generated-id']))
  local open, waiting, pending = {}, {}, {}
  local floor, held_by
  for name, g in pairs(counted) do
    local unread, _, oldest = undelivered(key, info, g, trusted)
    open[name], waiting[name], pending[name] = unread, unread, oldest_pending(key, g)
    if pending[name] then
      open[name] = open[name] + delivered_since(key, info, pending[name], g['last-delivered-id'])
      if not oldest or less(pending[name], oldest) then oldest = pending[name] end
    end
    record_checkpoint(key, base, g, pending[name])
    if oldest and (not held_by or less(oldest, floor)) then floor, held_by = oldest, name end
  end
  if not held_by and next(counted) then floor = after(info['last-generated-id']) end
  -- what nobody is declared to read counts as unsettled
  local unsettled = #declared == 0 and info.length or 0
  for _, d in ipairs(declared) do unsettled = math.max(unsettled, math.min(open[d.name], info.length)) end
  r.unsettled = unsettled
  if max_bytes > 0 and info.length > 0 then
    r.bytes = redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 5)
    if r.bytes > max_bytes then
      max_length = math.max(1, math.min(max_length, math.floor(info.length * max_bytes / r.bytes)))
    end
  end
  local cut = string.format('%.0f-0', math.max(clock - retention, 0))
  local minid = cut
  if floor and less(floor, minid) then minid, r.held_by = floor, held_by end
  r.trimmed = trim_before(key, minid, limit, on_full == 'Backpressure' and info.length >= max_length)
  local excess = info.length - r.trimmed - max_length
  if on_full == 'TrimOldest' and excess > 0 then
    local n
    n, r.overrun = trim_oldest(key, base, info.length - r.trimmed, max_length, limit, declared, waiting)
    r.trimmed = r.trimmed + n
  elseif on_full == 'TrimAcknowledged' and floor and excess > 0 then
    -- LIMIT bounds what goes, MINID keeps to what every group has settled
    local n = redis.call('XTRIM', key, 'MINID', '~', floor, 'LIMIT', math.min(excess, limit))
    r.trimmed, r.shortened = r.trimmed + n, n > 0
  end
  r.more = r.more or r.trimmed >= limit / 2
  r.length = info.length - r.trimmed
  if on_full == 'Backpressure' then
    r.gate, r.refusing = max_length, r.length >= max_length
  elseif on_full == 'TrimAcknowledged' then
    r.gate, r.refusing = math.max(r.length - unsettled, 0) + max_length, unsettled >= max_length
  end
  set_if_changed(base .. ':gate', r.gate)
  for _, d in ipairs(declared) do
    if d.keep_dead > 0 then
      if r.refusing and pending[d.name] then
        local parked = broadcast and base .. ':parked:' .. d.name or ''
        local expired = expire_pending(key, base, d.name, d.lease, cut, parked)
        r.expired, r.more = r.expired + expired, r.more or expired == PAGE
      end
      local keep_from = string.format('%.0f-0', math.max(clock - d.keep_dead, 0))
      redis.call('XTRIM', base .. ':dlq:' .. d.name, 'MINID', '~', keep_from)
    end
  end
  return cjson.encode(r)
end

-- Registration sees no globals but `redis`, so it is written out. All but adding must work on a server that is out of
-- memory, so that consumers can drain it.
redis.register_function{function_name = 'as1_add', callback = add}
redis.register_function{function_name = 'as1_settle', callback = settle, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_retry', callback = retry, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_dead_letter', callback = dead_letter, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_sweep', callback = sweep, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_take', callback = take, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_begin', callback = begin, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_renew', callback = renew, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_release', callback = release, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_janitor', callback = janitor, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_create_stream', callback = create_stream, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_destroy_group', callback = destroy_group, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_delete_stream', callback = delete_stream, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_create_group', callback = create_group, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_orphan', callback = orphan, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_remove_consumers', callback = remove_consumers, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_observe', callback = observe, flags = {'no-writes'}}
redis.register_function{function_name = 'as1_revision', callback = revision, flags = {'no-writes'}}
