-- Tells the state of entries in groups: for receipts of broadcasts, and for consumers that keep the order of a key. It is
-- read from the groups' own state, so nothing is written for it.

-- The state of an entry in a group.
local function state_of(key, id, group, parked)
  if not group then return 'missing' end
  local given_up = redis.call('HGET', parked, id)
  if given_up then return given_up end
  if less(group['last-delivered-id'], id) then return 'pending' end
  return #redis.call('XPENDING', key, group.name, id, id, 1) > 0 and 'pending' or 'acknowledged'
end

-- KEYS: stream. ARGV: number of groups, group, parked key, ..., id, ...
-- Returns the state of each entry in each group, entry by entry: acknowledged, pending, retrying, dead, or missing if there
-- is no group.
local function receipt(keys, args)
  local key, groups, replies = keys[1], {}, {}
  local listed = redis.pcall('XINFO', 'GROUPS', key)
  -- without a stream, all groups are missing
  if listed.err and not string.find(listed.err, 'no such key', 1, true) then return listed end
  for _, flat in ipairs(listed) do
    local group = map(flat)
    groups[group.name] = group
  end
  local first_id = 2 + 2 * tonumber(args[1])
  for at = first_id, #args do
    for i = 2, first_id - 1, 2 do
      replies[#replies + 1] = state_of(key, args[at], groups[args[i]], args[i + 1])
    end
  end
  return replies
end

-- See docs/adr/0014-ordering-keys.md.
-- KEYS: stream. ARGV: group, parked key, id, ...
-- Returns 1 for each of these delivered entries that the group has finished: it is neither pending nor retried; else 0.
local function turn(keys, args)
  local key, group, parked, replies = keys[1], args[1], args[2], {}
  for i = 3, #args do
    local is_open = #redis.call('XPENDING', key, group, args[i], args[i], 1) > 0
      or redis.call('HGET', parked, args[i]) == 'retrying'
    replies[#replies + 1] = is_open and 0 or 1
  end
  return replies
end

redis.register_function{function_name = 'as1_receipt', callback = receipt, flags = {'no-writes'}}
redis.register_function{function_name = 'as1_turn', callback = turn, flags = {'no-writes', 'allow-oom'}}
