-- Tells the state of entries in groups: for receipts of broadcasts, and for consumers that keep the order of a key.

-- The state of an entry in a group. What is expected was settled only if that was noted. The janitor takes off what all
-- groups have finished, and leaves a note where it was not acknowledged: nothing is known of what is older than all notes,
-- of the stream or of the group.
local function state_of(key, id, group, parked, is_expected, since)
  local noted = redis.call('HGET', parked, id)
  if noted then return noted end
  if not group then return 'missing' end
  if not is_expected then
    local unknown = redis.call('HGET', parked, 'since')
    local is_noted = since and ms_of(id) >= since and not (is_id(unknown) and not less(unknown, id))
    return is_noted and 'acknowledged' or 'missing'
  end
  if less(group['last-delivered-id'], id) then return 'pending' end
  return #redis.call('XPENDING', key, group.name, id, id, 1) > 0 and 'pending' or 'missing'
end

-- KEYS: stream. ARGV: receipts key, number of groups, group, parked key, ..., id, ...
-- Returns the state of each entry in each group, entry by entry: acknowledged, pending, retrying, dead, or missing if there
-- is no group, or the entry was lost to it.
local function receipt(keys, args)
  local key, receipts, groups, replies = keys[1], args[1], {}, {}
  -- the first id comes after the groups; there are at most a page of states to read
  local first_id = 3 + 2 * number_in(args[2], 0, PAGE)
  local entries = count_of(args, first_id, 1, 0, PAGE)
  if entries * (first_id - 3) / 2 > PAGE then refuse('ERR too many states for one call') end
  for at = first_id, #args do check_id(args[at]) end
  local listed = redis.pcall('XINFO', 'GROUPS', key)
  -- without a stream, all groups are missing
  if listed.err and not string.find(listed.err, 'no such key', 1, true) then return listed end
  for _, flat in ipairs(listed) do
    local group = map(flat)
    groups[group.name] = group
  end
  local since = tonumber(redis.call('ZSCORE', receipts, 'since'))
  for at = first_id, #args do
    local is_expected = redis.call('ZSCORE', receipts, args[at])
    for i = 3, first_id - 1, 2 do
      replies[#replies + 1] = state_of(key, args[at], groups[args[i]], args[i + 1], is_expected, since)
    end
  end
  return replies
end

-- See docs/adr/0014-ordering-keys.md.
-- KEYS: stream; and the retry stream for entries of a replay. ARGV: group, consumer, parked key, id, counter, predecessor, ...
-- Returns 1 for each of these entries that the consumer holds and whose predecessor the group has finished: it was delivered
-- before, and is neither pending nor retried; in a replay, nor replayed. Else 0, also to who held the entry in a group that was
-- made again since.
local function turn(keys, args)
  count_of(args, 4, 3, 1, PAGE)
  for i = 4, #args, 3 do
    check_id(args[i])
    number_in(args[i + 1], 0, MOST)
    if args[i + 2] ~= '' then check_id(args[i + 2]) end
  end
  local key, group, consumer, parked, replies = keys[1], args[1], args[2], args[3], {}
  local is_replay = keys[2] ~= nil
  for i = 4, #args, 3 do
    local before = args[i + 2]
    local has_come = held(keys[2] or key, group, consumer, args[i], tonumber(args[i + 1])) == DONE
      and (before == '' or #redis.call('XPENDING', key, group, before, before, 1) == 0
        and redis.call('HGET', parked, before) ~= 'retrying'
        and not (is_replay and redis.call('HGET', parked, 'replay:' .. before)))
    replies[#replies + 1] = has_come and 1 or 0
  end
  return replies
end

register('as1_receipt', receipt, {'no-writes'})
register('as1_turn', turn, {'no-writes', 'allow-oom'})
