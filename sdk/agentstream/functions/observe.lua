-- What reconciling, measuring and reporting want to know of a stream.

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
  for i = 3, #args do
    o.groups[args[i]] = o.groups[args[i]] or {exists = false}
    observe_derived(base, args[i], o.groups[args[i]])
  end
  return cjson.encode(o)
end

redis.register_function{function_name = 'as1_observe', callback = observe, flags = {'no-writes'}}
