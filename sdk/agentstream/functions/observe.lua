-- What reconciling, measuring and reporting want to know of a stream.

-- What belongs to a declared group besides its place on the stream.
local function observe_derived(base, name, now, o)
  local retry_key, delay_key = base .. ':retry:' .. name, base .. ':delay:' .. name
  -- where the retry stream is missing, that is an error without groups
  for _, flat in ipairs(redis.pcall('XINFO', 'GROUPS', retry_key)) do
    local g = map(flat)
    if g.name == name then o.retry_ready, o.retry_pending = true, g.pending end
  end
  o.retry_length = redis.call('XLEN', retry_key)
  o.delayed = redis.call('ZCARD', delay_key)
  if o.delayed > 0 then
    o.next_due = tonumber(redis.call('ZRANGE', delay_key, 0, 0, 'WITHSCORES')[2])
    if o.next_due <= now then o.due = redis.call('ZCOUNT', delay_key, '-inf', now) end
  end
  o.dead = redis.call('XLEN', base .. ':dlq:' .. name)
  o.stats = map(redis.call('HGETALL', base .. ':stats:' .. name))
  -- a matter of the functions alone
  o.stats.gone = nil
  -- where sweeping and forgetting are says nothing of the group, and moves where nothing else does
  for _, cursor in ipairs({'sweep:due', 'sweep:main', 'sweep:retry', 'forget:at'}) do o.stats[cursor] = nil end
end

-- Everything that reconciling, measuring and reporting want to know of a stream.
local function look(key, base, now, trusted, declared)
  local kind = type_of(key)
  local o = {type = kind, groups = {}, meta = map(redis.call('HGETALL', base .. ':meta')),
    gate = redis.call('GET', base .. ':gate') or nil, contracts = redis.call('HGET', base .. ':contracts', 'digest') or nil}
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
  for _, name in ipairs(declared) do
    o.groups[name] = o.groups[name] or {exists = false}
    observe_derived(base, name, now, o.groups[name])
  end
  return o
end

-- KEYS: stream. ARGV: base of derived keys, trust the server's lag? (0|1), declared group, ...
-- Returns all there is to know of a stream, as one JSON object.
local function observe(keys, args)
  local now = now_ms()
  local o = look(keys[1], args[1], now, args[2] == '1', {unpack(args, 3)})
  o.now = now
  return cjson.encode(o)
end

redis.register_function{function_name = 'as1_observe', callback = observe, flags = {'no-writes'}}
