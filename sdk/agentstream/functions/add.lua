-- Adding messages to a stream.

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

redis.register_function{function_name = 'as1_add', callback = add}
