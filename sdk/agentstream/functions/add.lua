-- Adding messages to a stream.
--
-- A sender adds in numbered batches. Of each sender, what became of its last batch is kept in one string, `<number>
-- <result> ...` with a result for each message: its entry, or why it was refused. The same number again is answered
-- from there, a lower one is an original that comes after its repetition.

-- How long a key of a sender's own keeps others with the same key out.
local ONCE = 3600000

-- How many entries there is room for.
local function room_of(stream, gate_key)
  local gate = redis.call('GET', gate_key)
  return gate and tonumber(gate) - redis.call('XLEN', stream) or math.huge
end

-- Reads one message off the arguments. Returns it, and where the next one begins. All that can fail is done here:
-- once entries are being added, nothing may.
local function message_at(args, first, order_key, known, last)
  local fields, options = {'m', args[first]}, tonumber(args[first + 1])
  local once, key
  for i = first + 2, first + options, 2 do
    local name, value = args[i], args[i + 1]
    if name == 'once' then
      once = value
      if known[once] == nil then known[once] = redis.call('GET', once) end
    elseif name == 'key' then
      key = value
      if last[key] == nil then last[key] = redis.call('HGET', order_key, key) end
    else
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  return {fields = fields, once = once, key = key}, first + 2 + options
end

local function add_keyed(stream, order_key, message, known, last)
  local key, once, fields = message.key, message.once, message.fields
  if key then
    -- whoever reads the entry knows by this field that it has a key, and what it comes after
    fields[#fields + 1] = 'p'
    fields[#fields + 1] = last[key] or '0-0'
  end
  local id = redis.call('XADD', stream, 'NOMKSTREAM', '*', unpack(fields))
  if not id then return false end
  if key then
    last[key] = id
    redis.call('HSET', order_key, key, id)
  end
  if once then
    known[once] = id
    redis.call('SET', once, id, 'PX', ONCE)
  end
  return id
end

-- KEYS: stream. ARGV: key of what was sent, number of the batch, for how many ms it may be repeated, gate key, order
-- key; then of each message: envelope, how many arguments follow, and these: pairs of `once` and a key of its own,
-- `key` and its ordering key, or name and value of a further field.
local function add(keys, args)
  local stream, sent_key, number, gate_key, order_key = keys[1], args[1], tonumber(args[2]), args[4], args[5]
  local sent = redis.call('GET', sent_key)
  local before = sent and tonumber(string.match(sent, '^%d+')) or 0
  if before == number then return sent end
  if before > number or (not sent and number > 1) then
    return redis.error_reply('STALE this batch was followed by others, or what was sent is forgotten')
  end
  local messages, known, last = {}, {}, {}
  local at, count = 6, 0
  while args[at] do
    count = count + 1
    if args[at + 1] == '0' then
      messages[count], at = args[at], at + 2
    else
      messages[count], at = message_at(args, at, order_key, known, last)
    end
  end
  local room = room_of(stream, gate_key)
  local results = {args[2]}
  for i = 1, count do
    local message = messages[i]
    local keyed = type(message) == 'table'
    local id = keyed and message.once and known[message.once]
    if not id then
      if room < 1 then
        id = 'BACKPRESSURE'
      else
        if keyed then
          id = add_keyed(stream, order_key, message, known, last)
        else
          id = redis.call('XADD', stream, 'NOMKSTREAM', '*', 'm', message)
        end
        if id then room = room - 1 else id = 'NOSTREAM' end
      end
    end
    results[i + 1] = id
  end
  local reply = table.concat(results, ' ')
  redis.call('SET', sent_key, reply, 'PX', args[3])
  return reply
end

redis.register_function{function_name = 'as1_add', callback = add}
