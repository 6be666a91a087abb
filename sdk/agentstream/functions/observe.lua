-- Reads the state of streams and their groups for the operator, of many streams in one call.

-- The latest time, in ms, and the digits of a counter, that are kept exactly in JSON.
local LATEST, DIGITS = 99999999999999, 14
-- The counters of a group that are read: its consumers may write any other field, and anything into these.
local COUNTED = {'acked', 'skipped', 'settled', 'resettled', 'retried', 'released', 'replayed', 'dead', 'trimmed', 'base:read',
  'base:settled', 'overrun', 'base:trimmed', 'base:overrun', 'base:gone', 'base:unsure', 'unreadable', 'slowest',
  'le:inf'}
for i = 1, #BOUNDS do COUNTED[#COUNTED + 1] = 'le:' .. BOUNDS[i] end

-- The counters of a group by name, and the names of those that hold something else than a number.
local function counters_of(stats)
  local counters, misread = {}, {}
  for i, value in ipairs(redis.call('HMGET', stats, unpack(COUNTED))) do
    if value and #value <= DIGITS and string.find(value, '^%d+$') then
      counters[COUNTED[i]] = tonumber(value)
    elseif value then
      misread[#misread + 1] = COUNTED[i]
    end
  end
  return counters, misread
end

-- Adds to `o` the state of the keys that belong to a declared group.
local function observe_derived(base, name, now, o)
  local retry_key, delay_key = base .. ':retry:' .. name, base .. ':delay:' .. name
  -- without a retry stream this is an error, which has no groups
  for _, flat in ipairs(redis.pcall('XINFO', 'GROUPS', retry_key)) do
    local g = map(flat)
    if g.name == name then o.retry_ready, o.retry_pending = true, g.pending end
  end
  o.retry_length = redis.call('XLEN', retry_key)
  o.delayed = redis.call('ZCARD', delay_key)
  if o.delayed > 0 then
    o.next_due = math.floor(math.max(math.min(next_due(delay_key), LATEST), 0))
    if o.next_due <= now then o.due = redis.call('ZCOUNT', delay_key, '-inf', now) end
  end
  o.dead = redis.call('XLEN', base .. ':dlq:' .. name)
  o.stats, o.misread = counters_of(base .. ':stats:' .. name)
  if #o.misread == 0 then o.misread = nil end
end

-- The state of a stream, with the keys of its declared groups.
local function look(key, base, now, trusted, declared, left)
  local kind = type_of(key)
  local o = {type = kind, groups = {}, meta = map(redis.call('HGETALL', base .. ':meta')),
    gate = redis.call('GET', base .. ':gate') or nil, contracts = redis.call('HGET', base .. ':contracts', 'digest') or nil}
  if kind == 'stream' then
    local info = info_of(key, left)
    o.length, o.added, o.last = info.length, info['entries-added'], info['last-generated-id']
    if info['first-entry'] then o.first = info['first-entry'][1] end
    for name, g in pairs(groups_of(key)) do
      local n, exact, oldest = undelivered(key, info, g, trusted, left)
      o.groups[name] = {exists = true, consumers = g.consumers, pending = g.pending, last = g['last-delivered-id'],
        read = g['entries-read'] or nil, undelivered = n, exact = exact, oldest_undelivered = oldest,
        oldest_pending = oldest_pending(key, g)}
    end
  end
  for _, name in ipairs(declared) do
    o.groups[name] = o.groups[name] or {exists = false}
    -- a key of the wrong type hides no more than what would be in it
    if not pcall(observe_derived, base, name, now, o.groups[name]) then o.groups[name].unreadable = true end
  end
  return o
end

-- KEYS: stream. ARGV: base, trust the server's lag? (0|1), declared group, ...
-- Returns the state of a stream, and the time, as a JSON object.
local function observe(keys, args)
  local declared, now = count_of(args, 3, 1, 0, 2 * PAGE), now_ms()
  local o = look(keys[1], args[1], now, flag(args[2]), {unpack(args, 3, 2 + declared)}, allowance())
  o.now = now
  return cjson.encode(o)
end

-- KEYS: stream, ... ARGV: trust the server's lag? (0|1), then of each stream: base, SHA-1 of the known state or '', number
-- of declared groups, declared group, ...
-- Returns the time, and for each stream its state as a JSON object, '' if the caller knows it, or the text of an error: one
-- must not hide the state of other streams. With large entries it returns only the first streams; ask for the others again.
local function measure(keys, args)
  local now, trusted, at, left = now_ms(), flag(args[1]), 2, allowance()
  local reply = {now}
  for i, key in ipairs(keys) do
    if left.bytes <= 0 then break end
    local base, known, groups = args[at], args[at + 1], number_in(args[at + 2], 0, 2 * PAGE)
    local fine, found = pcall(function()
      return cjson.encode(look(key, base, now, trusted, {unpack(args, at + 3, at + 2 + groups)}, left))
    end)
    if fine then
      if known ~= '' and redis.sha1hex(found) == known then found = '' end
    else
      found = type(found) == 'table' and found.err or tostring(found)
    end
    reply[i + 1], at = found, at + 3 + groups
  end
  return reply
end

register('as1_observe', observe, {'no-writes'})
register('as1_measure', measure, {'no-writes'})
