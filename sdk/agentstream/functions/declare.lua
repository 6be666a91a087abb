-- Creates and removes streams, groups and contracts.

-- KEYS: stream. ARGV: meta key, field, value, ...
-- Creates an empty stream if there is no key, and records its owner. Returns 1 if it was created, else 0.
local function create_stream(keys, args)
  count_of(args, 2, 2, 1, PAGE)
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

-- KEYS: stream. ARGV: contracts key, digest or '', field, JSON Schema, ...
-- Replaces the contracts. Returns 1.
local function set_contracts(keys, args)
  count_of(args, 3, 2, args[2] == '' and 0 or 1, PAGE)
  redis.call('UNLINK', args[1])
  if args[2] ~= '' then redis.call('HSET', args[1], 'digest', unpack(args, 2)) end
  return 1
end

-- Notes that nothing is known of what receipts may have asked an earlier group of that name for: its notes went with it.
-- What is still expected will be noted.
local function begin_receipts(base, group, info)
  local receipts, unknown = base .. ':receipts', info['last-generated-id']
  if redis.call('EXISTS', receipts) == 0 then return end
  for _, id in ipairs(redis.call('ZRANGE', receipts, 0, 1)) do
    if is_id(id) then unknown = before(id) end
  end
  redis.call('HSET', base .. ':parked:' .. group, 'since', unknown)
end

-- KEYS: stream. ARGV: base, group, start id.
-- Creates the group, at '0', '$' or an entry id whose second part may be left out, and its retry stream. Returns 1 if the
-- group was created, 0 if the stream had it.
local function create_group(keys, args)
  count_of(args, 4, 1, 0, 0)
  local key, base, group, id = keys[1], args[1], args[2], args[3]
  if string.match(id, '^%d+$') then id = id .. '-0' end
  if id ~= '$' then check_id(id) end
  local retry_key = base .. ':retry:' .. group
  if type_of(key) == 'none' then
    return redis.error_reply('NOSTREAM the stream does not exist')
  end
  local retry_made = redis.pcall('XGROUP', 'CREATE', retry_key, group, '0', 'MKSTREAM')
  if retry_made.err and not string.find(retry_made.err, '^BUSYGROUP') then return retry_made end
  local left = allowance()
  local info = info_of(key, left)
  -- an id in the future would hide entries if the clock was set back
  if id == '$' or not less(id, info['last-generated-id']) then id = info['last-generated-id'] end
  local made = redis.pcall('XGROUP', 'CREATE', key, group, id)
  if made.err then
    if string.find(made.err, '^BUSYGROUP') then return 0 end
    return made
  end
  if not redis.call('HGET', base .. ':meta', 'checkpoint:' .. group) then begin_receipts(base, group, info) end
  redis.call('HSET', base .. ':meta', 'checkpoint:' .. group, id)
  place(key, base, group, id, info, 0, left)
  return 1
end

-- Takes a page of pending entries off a group: the server would remove all at once with it. Returns whether none is left.
local function drop_pending(key, base, group)
  local ids = {}
  -- without a group nothing is pending
  for i, p in ipairs(redis.pcall('XPENDING', key, group, '-', '+', PAGE)) do ids[i] = p[1] end
  if #ids > 0 then settled(key, group, base .. ':stats:' .. group, false, ids) end
  return #ids < PAGE
end

-- The keys of a replay: its state, and the last entry of each ordering key in it.
local function keys_of_replay(base, id) return base .. ':replay:' .. id, base .. ':replay:' .. id .. ':keys' end

-- Forgets a replay; what it has moved stays where it is. Returns how many keys it had.
local function forget_replay(base, group, id)
  redis.call('HDEL', base .. ':stats:' .. group, 'replay:' .. id .. ':acked', 'replay:' .. id .. ':dead')
  redis.call('HDEL', base .. ':meta', 'replay:' .. id)
  return redis.call('UNLINK', keys_of_replay(base, id))
end

-- Forgets the replays of a stream, or of one of its groups.
local function forget_replays(base, only_group)
  for name, group in pairs(map(redis.call('HGETALL', base .. ':meta'))) do
    local id = string.match(name, '^replay:(.*)$')
    if id and (not only_group or group == only_group) then forget_replay(base, group, id) end
  end
end

-- KEYS: stream. ARGV: base, group.
-- Removes the group with its retries and delays, but no dead letters. Returns 1 if there was a group, 0 if there was none,
-- -1 if it has so much pending that the call is to be made again.
local function destroy_group(keys, args)
  count_of(args, 3, 1, 0, 0)
  local base, group, destroyed = args[1], args[2], 0
  if type_of(keys[1]) == 'stream' then
    if not drop_pending(keys[1], base, group) then return -1 end
    destroyed = redis.call('XGROUP', 'DESTROY', keys[1], group)
  end
  for _, part in ipairs({':retry:', ':delay:', ':stats:', ':parked:', ':seen:', ':earlier:'}) do redis.call('UNLINK', base .. part .. group) end
  if redis.call('XLEN', base .. ':dlq:' .. group) == 0 then redis.call('UNLINK', base .. ':dlq:' .. group) end
  forget_replays(base, group)
  redis.call('HDEL', base .. ':meta', 'checkpoint:' .. group, 'left:' .. group, 'fence:' .. group)
  return destroyed
end

-- Whether a group has delayed, retrying or dead messages.
local function leaves_work(base, group)
  if redis.call('EXISTS', base .. ':delay:' .. group) == 1 then return true end
  return redis.call('XLEN', base .. ':retry:' .. group) > 0 or redis.call('XLEN', base .. ':dlq:' .. group) > 0
end

-- KEYS: stream. ARGV: base, only if empty? (0|1), group, ...
-- Deletes the stream and all keys derived from it, for these groups and all that the stream has or had. Returns 1, or 0 if
-- it is kept because it was to be empty and has undelivered, pending, delayed, retrying or dead messages.
local function delete_stream(keys, args)
  count_of(args, 3, 1, 0, 2 * PAGE)
  local key, base, only_if_empty = keys[1], args[1], flag(args[2])
  local kind = type_of(key)
  if kind ~= 'stream' and kind ~= 'none' then return 0 end
  local names = {}
  for i = 3, #args do names[args[i]] = true end
  for _, name in ipairs(redis.call('HKEYS', base .. ':meta')) do
    local group = string.match(name, '^checkpoint:(.*)$')
    if group then names[group] = true end
  end
  if kind == 'stream' then
    local left = allowance()
    local info, groups = info_of(key, left), groups_of(key)
    -- without a group, no entry was ever read
    if only_if_empty and info.length > 0 and not next(groups) then return 0 end
    for name, g in pairs(groups) do
      names[name] = true
      if only_if_empty and (g.pending > 0 or oldest_unread(key, info, g, left)) then return 0 end
    end
  end
  for name in pairs(names) do
    if only_if_empty and leaves_work(base, name) then return 0 end
  end
  forget_replays(base)
  redis.call('UNLINK', key, base .. ':meta', base .. ':gate', base .. ':order', base .. ':contracts', base .. ':receipts')
  for name in pairs(names) do
    for _, part in ipairs({':retry:', ':delay:', ':dlq:', ':stats:', ':parked:', ':seen:', ':earlier:'}) do
      redis.call('UNLINK', base .. part .. name)
    end
  end
  return 1
end

register('as1_create_stream', create_stream, {'allow-oom'})
register('as1_set_contracts', set_contracts)
register('as1_destroy_group', destroy_group, {'allow-oom'})
register('as1_delete_stream', delete_stream, {'allow-oom'})
register('as1_create_group', create_group, {'allow-oom'})
