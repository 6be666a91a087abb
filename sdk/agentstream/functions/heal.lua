-- Heals what others did to groups and to the ids of a stream. Nothing is lost by it; what is in hand may be handled twice.

-- An id that is so many ms ahead of the clock is one of the future: as1_add makes none.
local AHEAD = 60000

-- KEYS: stream. ARGV: base, group, deliver again? (0|1).
-- Begins the group's account anew: what others took from it is known. Delivers again what it was given since its checkpoint,
-- which is from before that, whoever has it in hand. Returns 1, 0 if there is no such group, -1 if it has so much pending that
-- the call is to be made again.
local function heal_group(keys, args)
  count_of(args, 4, 1, 0, 0)
  local key, base, group, left = keys[1], args[1], args[2], allowance()
  local g = type_of(key) == 'stream' and groups_of(key)[group]
  if not g then return 0 end
  local info, at, pending = info_of(key, left), g['last-delivered-id'], g.pending
  local last = info['last-generated-id']
  if less(last, at) then at = last end
  if flag(args[3]) then
    -- what is pending comes after the checkpoint
    if not drop_pending(key, base, group) then return -1 end
    at, pending = redis.call('HGET', base .. ':meta', 'checkpoint:' .. group) or '0-0', 0
    if less(last, at) then at = '0-0' end
  end
  place(key, base, group, at, info, pending, left)
  return 1
end

-- Moves a page of what a group has not settled to its retry stream. Returns whether nothing is left.
local function hand_over(key, base, group, left)
  local n = 0
  while n < PAGE and left.bytes > 0 do
    local few = next_few(left, PAGE - n)
    redis.call('XREADGROUP', 'GROUP', group, 'agentstream', 'COUNT', few, 'STREAMS', key, '>')
    local page = redis.call('XPENDING', key, group, '-', '+', few)
    if #page == 0 then return true end
    for _, p in ipairs(page) do
      pass_on(key, group, p[2], base .. ':stats:' .. group, false, base .. ':parked:' .. group, base .. ':retry:' .. group, p[1],
        p[4], left)
      n = n + 1
    end
  end
  return false
end

-- KEYS: stream. ARGV: base, group, ...
-- Gives a stream whose last id is of the future ids of the present: moves what its declared groups have not settled to their
-- retry streams, and replaces it with an empty stream. Returns 1 if it did, 0 if the ids are of the present, -1 if the call is
-- to be made again.
local function heal_ids(keys, args)
  count_of(args, 2, 1, 0, 2 * PAGE)
  local key, base, left = keys[1], args[1], allowance()
  if type_of(key) ~= 'stream' then return 0 end
  local info, now = info_of(key, left), now_ms()
  if ms_of(info['last-generated-id']) <= now + AHEAD then return 0 end
  local groups = groups_of(key)
  for i = 2, #args do
    if groups[args[i]] and not hand_over(key, base, args[i], left) then return -1 end
  end
  local id, added = string.format('%.0f-0', now), string.format('%.0f', info['entries-added'])
  redis.call('UNLINK', key)
  redis.call('XGROUP', 'CREATE', key, 'agentstream', '$', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', key, 'agentstream')
  -- the counters go on, and with them the accounts of groups
  redis.call('XSETID', key, id, 'ENTRIESADDED', added, 'MAXDELETEDID', '0-0')
  for i = 2, #args do
    if groups[args[i]] then
      redis.call('XGROUP', 'CREATE', key, args[i], id, 'ENTRIESREAD', added)
      redis.call('HSET', base .. ':meta', 'checkpoint:' .. args[i], id)
    end
  end
  return 1
end

register('as1_heal_group', heal_group, {'allow-oom'})
register('as1_heal_ids', heal_ids, {'allow-oom'})
