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
-- Upper bounds, in ms, of the latency buckets; the last bucket is unbounded.
local BOUNDS = {1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 2000, 5000, 10000, 30000,
  60000, 300000}

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function ms_of(id) return tonumber(string.match(id, '^(%d+)')) end

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function less(a, b)
  local am, as = parts(a)
  local bm, bs = parts(b)
  return am < bm or (am == bm and as < bs)
end

local function after(id)
  local ms, seq = parts(id)
  return string.format('%.0f-%.0f', ms, seq + 1)
end

local function before(id)
  local ms, seq = parts(id)
  if seq > 0 then return string.format('%.0f-%.0f', ms, seq - 1) end
  if ms == 0 then return '0-0' end
  return string.format('%.0f-9007199254740991', ms - 1)
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

-- The header `x` of a retried entry: where it came from and how often it was tried. {} for a first delivery.
local function header(fields)
  local x = field(fields, 'x')
  return x and cjson.decode(x) or {}
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
    if name == consumer or (prefix ~= '' and string.sub(name, 1, #prefix) == prefix) then
      local pending = redis.call('XPENDING', key, group, start, '+', count, name)
      more = more or #pending == count
      for _, p in ipairs(pending) do
        if name ~= consumer then redis.call('XCLAIM', key, group, consumer, 0, p[1], 'JUSTID') end
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

-- KEYS: stream. ARGV: group, consumer, id, counter, ... A handler starts: the delivery counter grows by one.
-- Returns for each the new counter, or 0 where this consumer no longer holds the entry.
local function begin(keys, args)
  local key, group, consumer, replies = keys[1], args[1], args[2], {}
  for i = 3, #args, 2 do
    local counter = tonumber(args[i + 1])
    local code = held(key, group, consumer, args[i], counter)
    if code == DONE then
      redis.call('XCLAIM', key, group, consumer, 0, args[i], 'JUSTID', 'RETRYCOUNT', counter + 1)
    end
    replies[#replies + 1] = code == DONE and counter + 1 or 0
  end
  return replies
end

-- KEYS: stream. ARGV: group, consumer, id, counter, ... Renews the lease. Returns a code for each.
local function renew(keys, args)
  local key, group, consumer, replies = keys[1], args[1], args[2], {}
  for i = 3, #args, 2 do
    local code = held(key, group, consumer, args[i], tonumber(args[i + 1]))
    if code == DONE then redis.call('XCLAIM', key, group, consumer, 0, args[i], 'JUSTID') end
    replies[#replies + 1] = code
  end
  return replies
end

-- KEYS: stream. ARGV: group, consumer, id, counter, ... Hands back: claimable at once, and no attempt counted.
-- Returns a code for each.
local function release(keys, args)
  local key, group, consumer, replies = keys[1], args[1], args[2], {}
  for i = 3, #args, 2 do
    local counter = tonumber(args[i + 1])
    local code = held(key, group, consumer, args[i], counter)
    if code == DONE then
      redis.call('XCLAIM', key, group, consumer, 0, args[i], 'IDLE', CLAIMABLE, 'JUSTID', 'RETRYCOUNT',
        math.max(counter - 1, 0))
    end
    replies[#replies + 1] = code
  end
  return replies
end

-- How many entries a group was not delivered yet, whatever the server's own lag says: {n, exact?, oldest id or nil}.
-- The server's lag is NULL or wrong after deletions, trims and groups at ids of their own.
local function undelivered(key, info, g, trusted)
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

-- The oldest id that a group has not settled: the smallest pending one, else what follows the last delivered.
local function needed(key, g)
  if g.pending > 0 then
    local smallest = redis.call('XPENDING', key, g.name)[2]
    if smallest then return smallest, true end
  end
  return after(g['last-delivered-id']), false
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
    o.first = info['first-entry'] and info['first-entry'][1]
    for name, g in pairs(groups_of(key)) do
      local n, exact, oldest = undelivered(key, info, g, trusted)
      o.groups[name] = {exists = true, consumers = g.consumers, pending = g.pending, last = g['last-delivered-id'],
        read = g['entries-read'] or nil, undelivered = n, exact = exact, oldest_undelivered = oldest}
      if g.pending > 0 then
        local smallest, is_pending = needed(key, g)
        if is_pending then o.groups[name].oldest_pending = smallest end
      end
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

-- KEYS: stream. ARGV: base, group, id ('0', '$' or an entry id).
-- Makes the group and its retry stream. Returns 1 if the group on the stream is new, 0 if it was there.
local function create_group(keys, args)
  local key, base, group, id = keys[1], args[1], args[2], args[3]
  local stats, retry_key = base .. ':stats:' .. group, base .. ':retry:' .. group
  if type_of(key) == 'none' then
    return redis.error_reply('NOSTREAM the stream does not exist')
  end
  local retry_made = redis.pcall('XGROUP', 'CREATE', retry_key, group, '0', 'MKSTREAM')
  if retry_made.err and not string.find(retry_made.err, '^BUSYGROUP') then return retry_made end
  local at = id
  local read
  local info = map(redis.call('XINFO', 'STREAM', key))
  if id == '$' or id == info['last-generated-id'] then
    -- without it, the server's lag is unknown from the next entry on
    at, read = '$', info['entries-added']
  elseif id == '0' then
    read = info['entries-added'] - info.length
  end
  local command = {'XGROUP', 'CREATE', key, group, at}
  if at == '$' and read then
    command[#command + 1] = 'ENTRIESREAD'
    command[#command + 1] = read
  end
  local made = redis.pcall(unpack(command))
  if made.err then
    if string.find(made.err, '^BUSYGROUP') then return 0 end
    return made
  end
  local from = at == '$' and info['last-generated-id'] or id == '0' and '0-0' or id
  redis.call('HSET', base .. ':meta', 'checkpoint:' .. group, from)
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
local function destroy_group(keys, args)
  local base, group = args[1], args[2]
  if type_of(keys[1]) == 'stream' then redis.call('XGROUP', 'DESTROY', keys[1], group) end
  for _, part in ipairs({':retry:', ':delay:', ':stats:', ':parked:'}) do redis.call('DEL', base .. part .. group) end
  redis.call('HDEL', base .. ':meta', 'checkpoint:' .. group)
  return 1
end

-- KEYS: stream. ARGV: base, only if empty? (0|1), group, ... Deletes the stream and what is derived from it.
-- Returns 1, or 0 where it was to be empty and is not: something undelivered, pending, delayed, retrying or dead.
local function delete_stream(keys, args)
  local key, base = keys[1], args[1]
  local kind = type_of(key)
  if kind ~= 'stream' and kind ~= 'none' then return 0 end
  if args[2] == '1' then
    local info = kind == 'stream' and map(redis.call('XINFO', 'STREAM', key))
    local groups = kind == 'stream' and groups_of(key) or {}
    -- without a group nothing was ever read
    if info and info.length > 0 and not next(groups) then return 0 end
    for _, g in pairs(groups) do
      if g.pending > 0 or undelivered(key, info, g, false) > 0 then return 0 end
    end
    for i = 3, #args do
      if redis.call('EXISTS', base .. ':delay:' .. args[i]) == 1 then return 0 end
      for _, part in ipairs({':retry:', ':dlq:'}) do
        local derived = base .. part .. args[i]
        if type_of(derived) == 'stream' and redis.call('XLEN', derived) > 0 then return 0 end
      end
    end
  end
  redis.call('DEL', key, base .. ':meta', base .. ':gate')
  for i = 3, #args do
    for _, part in ipairs({':retry:', ':delay:', ':dlq:', ':stats:', ':parked:'}) do
      redis.call('DEL', base .. part .. args[i])
    end
  end
  return 1
end

-- KEYS: stream. ARGV: base, group, prefix. The pod whose consumers' names start with `prefix` is gone: what they hold
-- becomes claimable at once. Returns how many entries.
local function orphan(keys, args)
  local base, group, prefix, n = args[1], args[2], args[3], 0
  for _, key in ipairs({keys[1], base .. ':retry:' .. group}) do
    for _, entry in ipairs(redis.call('XPENDING', key, group)[4] or {}) do
      local name, start = entry[1], '-'
      while start and string.sub(name, 1, #prefix) == prefix do
        local page = redis.call('XPENDING', key, group, start, '+', PAGE, name)
        for _, p in ipairs(page) do
          redis.call('XCLAIM', key, group, name, 0, p[1], 'IDLE', CLAIMABLE, 'JUSTID')
          n = n + 1
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
  local base, group, prefix, holding, names, removed = args[1], args[2], args[3], {}, {}, {}
  local streams = {keys[1], base .. ':retry:' .. group}
  for _, key in ipairs(streams) do
    for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
      local c = map(flat)
      if string.sub(c.name, 1, #prefix) == prefix then
        names[c.name] = true
        if c.pending > 0 then holding[c.name] = true end
      end
    end
  end
  for name in pairs(names) do
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
  while n < 20 * PAGE do
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
local function expire_pending(key, base, group, lease, cut, limit)
  local n = 0
  for _, p in ipairs(redis.call('XPENDING', key, group, 'IDLE', lease, '-', string.format('%.0f', cut), limit)) do
    local e = redis.call('XRANGE', key, p[1], p[1])
    local stats = base .. ':stats:' .. group
    if #e == 0 then
      count_trimmed(key, group, stats, false, p[1])
    else
      local x = header(e[1][2])
      x.origin = x.origin or p[1]
      bury(base .. ':dlq:' .. group, stats, '', without_header(e[1][2]), x, p[4], 'Expired',
        'held for longer than retention.minAge while the stream is full')
      settled(key, group, stats, false, {p[1]})
      n = n + 1
    end
  end
  return n
end

-- Plain MAXLEN, at the price of what no group has settled; counts what groups lost before they read it.
local function trim_oldest(key, base, info, groups, max_length, limit)
  local removed_before = info['entries-added'] - info.length
  local trimmed = redis.call('XTRIM', key, 'MAXLEN', '~', max_length, 'LIMIT', limit)
  local overrun = 0
  for name, g in pairs(groups) do
    local read = g['entries-read'] or removed_before
    local lost = math.max(0, removed_before + trimmed - math.max(read, removed_before))
    if lost > 0 then
      redis.call('HINCRBY', base .. ':stats:' .. name, 'overrun', lost)
      overrun = overrun + lost
    end
  end
  return trimmed, overrun
end

-- KEYS: stream. ARGV: base, retention, max length, max bytes (0: none), on full, limit, trust the server's lag? (0|1),
-- then of each declared group: name, lease, age of dead letters to keep (0: all).
-- Moves due retries, records each group's checkpoint, trims what all groups have settled and the retention allows,
-- and publishes the length at which adding is refused. Returns a JSON object of what it did and saw.
local function janitor(keys, args)
  local key, base, retention, max_length, max_bytes = keys[1], args[1], tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  local on_full, limit, trusted = args[5], tonumber(args[6]), args[7] == '1'
  local now, r = now_ms(), {trimmed = 0, overrun = 0, moved = 0, expired = 0, shortened = false, refusing = false}
  r.type = type_of(key)
  local declared = {}
  for i = 8, #args, 3 do
    declared[#declared + 1] = {name = args[i], lease = tonumber(args[i + 1]), keep_dead = tonumber(args[i + 2])}
  end
  for _, d in ipairs(declared) do
    r.moved = r.moved + move_due(base .. ':delay:' .. d.name, base .. ':retry:' .. d.name, now, PAGE)
    if d.keep_dead > 0 then
      redis.call('XTRIM', base .. ':dlq:' .. d.name, 'MINID', '~', string.format('%.0f', now - d.keep_dead))
    end
  end
  if r.type ~= 'stream' then return cjson.encode(r) end
  local info, groups = map(redis.call('XINFO', 'STREAM', key)), groups_of(key)
  r.length = info.length
  local counted, holds_pending = {}, {}
  for _, d in ipairs(declared) do
    if not groups[d.name] then
      -- where a group will resume is not known, so nothing may go
      r.missing = d.name
      return cjson.encode(r)
    end
    counted[d.name] = groups[d.name]
  end
  for name, g in pairs(groups) do
    if not counted[name] and is_alive(key, name) then counted[name] = g end
  end
  local floor, held_by
  local settled_entries = info.length
  for name, g in pairs(counted) do
    local oldest, is_pending = needed(key, g)
    holds_pending[name] = is_pending
    local checkpoint = is_pending and before(oldest) or g['last-delivered-id']
    if redis.call('HGET', base .. ':meta', 'checkpoint:' .. name) ~= checkpoint then
      redis.call('HSET', base .. ':meta', 'checkpoint:' .. name, checkpoint)
    end
    if not floor or less(oldest, floor) then floor, held_by = oldest, name end
    if info.length > 0 then
      local open = undelivered(key, info, g, trusted)
      if is_pending then open = open + delivered_since(key, info, oldest, g['last-delivered-id']) end
      settled_entries = math.min(settled_entries, math.max(info.length - open, 0))
    end
  end
  if max_bytes > 0 and info.length > 0 then
    r.bytes = redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 5) or 0
    if r.bytes > max_bytes then
      max_length = math.min(max_length, math.floor(info.length * max_bytes / r.bytes))
    end
  end
  r.unsettled = info.length - settled_entries
  -- a clock that jumped ahead trims nothing before new entries arrive at the new time
  local cut = math.min(now, ms_of(info['last-generated-id'])) - retention
  if cut > 0 then
    local minid = string.format('%.0f-0', cut)
    if floor and less(floor, minid) then
      minid, r.held_by = floor, held_by
    end
    r.trimmed = redis.call('XTRIM', key, 'MINID', '~', minid, 'LIMIT', limit)
  end
  local excess = info.length - r.trimmed - max_length
  if on_full == 'TrimOldest' then
    if excess > 0 then
      local n
      n, r.overrun = trim_oldest(key, base, info, counted, max_length, limit)
      r.trimmed = r.trimmed + n
    end
  elseif on_full == 'TrimAcknowledged' and floor and excess > 0 then
    -- LIMIT bounds what goes, MINID keeps to what every group has settled
    local n = redis.call('XTRIM', key, 'MINID', '~', floor, 'LIMIT', math.min(excess, limit))
    r.trimmed = r.trimmed + n
    r.shortened = n > 0
  end
  r.refusing = on_full == 'Backpressure' and info.length - r.trimmed >= max_length
    or on_full == 'TrimAcknowledged' and r.unsettled >= max_length
  if r.refusing then
    for _, d in ipairs(declared) do
      if holds_pending[d.name] and d.keep_dead > 0 and cut > 0 then
        r.expired = r.expired + expire_pending(key, base, d.name, d.lease, cut, PAGE)
      end
    end
  end
  r.length = redis.call('XLEN', key)
  local gate
  if on_full == 'Backpressure' then gate = max_length end
  if on_full == 'TrimAcknowledged' then gate = math.max(settled_entries - r.trimmed, 0) + max_length end
  set_if_changed(base .. ':gate', gate)
  r.gate = gate
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
