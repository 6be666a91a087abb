-- Who has acknowledged an entry: read off what groups keep anyway, so that a receipt costs nothing to write.

-- What has become of an entry in a group.
local function standing(key, id, group, parked)
  if not group then return 'missing' end
  local given_up = redis.call('HGET', parked, id)
  if given_up then return given_up end
  if less(group['last-delivered-id'], id) then return 'pending' end
  return #redis.call('XPENDING', key, group.name, id, id, 1) > 0 and 'pending' or 'acknowledged'
end

-- KEYS: stream. ARGV: id, group, parked key, ... Returns for each group what has become of the entry in it:
-- acknowledged, pending, retrying, dead, or missing where there is no such group.
local function receipt(keys, args)
  local key, id, groups, replies = keys[1], args[1], {}, {}
  local listed = redis.pcall('XINFO', 'GROUPS', key)
  -- where the stream is missing, so are its groups
  if listed.err and not string.find(listed.err, 'no such key', 1, true) then return listed end
  for _, flat in ipairs(listed) do
    local group = map(flat)
    groups[group.name] = group
  end
  for i = 2, #args, 2 do
    replies[#replies + 1] = standing(key, id, groups[args[i]], args[i + 1])
  end
  return replies
end

redis.register_function{function_name = 'as1_receipt', callback = receipt, flags = {'no-writes'}}
