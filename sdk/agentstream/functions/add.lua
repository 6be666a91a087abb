-- Adds messages to streams, and answers to reply streams.
--
-- A sender adds messages in numbered batches. The results of its last batch are kept in one string, `<number> <result>
-- ...`: for each message the id of its entry, or why it was refused. A batch with the same number is answered from that
-- string; a batch with a lower one is an original that arrives after its repetition, and one of a sender that is not
-- remembered, but for number 0, by which a sender introduces itself, is one that arrives too late.

-- For how many ms a message with the same idempotency key is not added again.
local ONCE = 3600000

-- How many entries may be added before the stream is full, if that is fewer than `wanted`. The gate is the length at which it
-- is; then, of each group, `<group>=<limit>`: the same length less what the group had settled. So what groups settle makes
-- room, whether or not a janitor comes by.
local function room_of(stream, gate_key, wanted)
  local gate = redis.call('GET', gate_key)
  if not gate then return math.huge end
  local length, least = redis.call('XLEN', stream), math.huge
  local room = tonumber(string.match(gate, '^%d+')) - length
  if room >= wanted then return room end
  local base = string.gsub(gate_key, ':gate$', '')
  local groups = 0
  for group, limit in string.gmatch(gate, ' (%S+)=(%-?%d+)') do
    -- a caller may name a text of its own as the gate
    groups = groups + 1
    if groups > 2 * PAGE then break end
    local settled = whole(redis.pcall('HGET', base .. ':stats:' .. group, 'settled')) or 0
    least = math.min(least, limit + settled - length)
  end
  return least < math.huge and math.max(room, least) or room
end

-- Reads one message from the arguments. Returns it, and the index of the next one. Everything that can fail is done here:
-- an error after the first XADD would leave half a batch.
local function message_at(args, first, order_key, known, last)
  local fields, options = {'m', args[first]}, number_in(args[first + 1], 0, 2 * (MOST_FIELDS - 2))
  if options % 2 == 1 or first + 1 + options > #args then refuse('ERR wrong number of arguments for the function') end
  local once, key, receipts
  for i = first + 2, first + options, 2 do
    local name, value = args[i], args[i + 1]
    if name == 'once' then
      once = value
      if known[once] == nil then known[once] = redis.call('GET', once) end
    elseif name == 'key' then
      key = value
      check_length(key, LONGEST_TEXT)
      if last[key] == nil then last[key] = redis.call('HGET', order_key, key) end
    elseif name == 'receipts' then
      receipts = value
      if known[receipts] == nil then known[receipts] = redis.call('ZSCORE', receipts, 'since') end
    else
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  return {fields = fields, once = once, key = key, receipts = receipts}, first + 2 + options
end

local function add_keyed(stream, order_key, message, known, last)
  local key, once, fields = message.key, message.once, message.fields
  if key then
    -- consumers see by this field that the entry has an ordering key, and which entry comes before it
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

-- Notes that receipts may ask for these entries, in a sorted set by their time. Its member `since` has the time from which
-- on it is complete: what is older was lost with it. The janitor removes what all groups have finished.
local function expect_receipts(receipts, ids)
  local members = {ms_of(ids[1]), 'since'}
  for _, id in ipairs(ids) do
    members[#members + 1] = ms_of(id)
    members[#members + 1] = id
  end
  redis.call('ZADD', receipts, 'NX', unpack(members))
end

-- KEYS: stream. ARGV: sent key, number of the batch, ms for which it may be repeated, gate key, order key, then of each
-- message: envelope, number of options, option, value, ...
-- Options are `once` with the key of the idempotency key, `key` with the ordering key, `receipts` with the key that notes
-- what receipts may ask for, or a further field with its value.
-- Returns `<number> <result> ...`, as above.
local function add(keys, args)
  local stream, sent_key, number, gate_key, order_key = keys[1], args[1], number_in(args[2], 0, MOST), args[4], args[5]
  local lifetime = number_in(args[3], 1, LONGEST)
  if not order_key then refuse('ERR wrong number of arguments for the function') end
  local sent = redis.call('GET', sent_key)
  local before = sent and tonumber(string.match(sent, '^%d+')) or -1
  if before == number then return sent end
  if before > number or (not sent and number > 0) then
    return redis.error_reply('STALE a later batch was added, or this sender is not remembered any more')
  end
  local messages, known, last = {}, {}, {}
  local at, count = 6, 0
  while args[at] do
    count = count + 1
    if count > PAGE then refuse('ERR too many messages for one call') end
    if args[at + 1] == '0' then
      messages[count], at = args[at], at + 2
    else
      messages[count], at = message_at(args, at, order_key, known, last)
    end
  end
  local room = room_of(stream, gate_key, count)
  local results, receipts, expected = {args[2]}, nil, {}
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
          if id and message.receipts then receipts, expected[#expected + 1] = message.receipts, id end
        else
          id = redis.call('XADD', stream, 'NOMKSTREAM', '*', 'm', message)
        end
        if id then room = room - 1 else id = 'NOSTREAM' end
      end
    end
    results[i + 1] = id
  end
  if receipts then expect_receipts(receipts, expected) end
  local reply = table.concat(results, ' ')
  redis.call('SET', sent_key, reply, 'PX', lifetime)
  return reply
end

-- KEYS: reply stream. ARGV: lifetime in ms, field, value, ...
-- Adds an answer, and keeps the reply stream for at least that long. It may be repeated: the requester takes the first of
-- several answers. Returns the answer's id.
local function reply(keys, args)
  local key, lifetime = keys[1], number_in(args[1], 1, LONGEST)
  count_of(args, 2, 2, 1, MOST_FIELDS)
  local id = redis.call('XADD', key, '*', unpack(args, 2))
  -- sets an expiry if there is none, and prolongs one that ends sooner
  redis.call('PEXPIRE', key, lifetime, 'NX')
  redis.call('PEXPIRE', key, lifetime, 'GT')
  return id
end

register('as1_add', add)
register('as1_reply', reply)
