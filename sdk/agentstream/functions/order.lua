-- Whose turn it is among entries with the same ordering key; see docs/adr/0014-ordering-keys.md.

-- KEYS: stream. ARGV: group, parked key, id, ... Of entries before others that were delivered. Returns for each 1 if the group
-- has finished with it: it is neither pending nor tried again.
local function turn(keys, args)
  local key, group, parked, replies = keys[1], args[1], args[2], {}
  for i = 3, #args do
    local is_open = #redis.call('XPENDING', key, group, args[i], args[i], 1) > 0
      or redis.call('HGET', parked, args[i]) == 'retrying'
    replies[#replies + 1] = is_open and 0 or 1
  end
  return replies
end

redis.register_function{function_name = 'as1_turn', callback = turn, flags = {'no-writes', 'allow-oom'}}
