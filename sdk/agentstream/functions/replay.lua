-- Replays: give a group messages of its stream, or its dead letters, once more, by its retry stream. No other group notices.
--
-- What is selected is decided outside, page by page. A page is moved in the same call that notes how far the replay is: who
-- repeats the call, or takes the replay over from somebody who was killed, moves nothing twice.

-- For so many ms after its last page, the state of a replay is kept if nobody removes it.
local REMEMBERED_FOR = 30 * DAY
-- The fences of a replay are so much above those of the group's last one at least, should the clock be set back: more than any
-- message has deliveries.
local FENCES = 1000000
local LONGEST_REASON = 40
-- The most entries that one call moves, in about a ms: each is looked up in several places.
local MOVES = 50

-- Checks group, replay id and both cursors, at `args[2]`, `args[3]`, `args[at]` and `args[at + 1]`; and that from `args[first]`
-- on, one id in `size` arguments, the ids are in order and between the cursors: no mistake moves an entry twice.
local function check_replay(args, at, first, size)
  check_length(args[2], LONGEST_NAME)
  if not is_replay(args[3]) then refuse('ERR an argument must be the id of a replay') end
  local last, to = args[at], args[at + 1]
  check_id(to)
  if last == '' then last = '0-0' else check_id(last) end
  for i = first, #args, size do
    check_id(args[i])
    if not less(last, args[i]) then refuse('ERR ids must be in order') end
    last = args[i]
  end
  if less(to, last) then refuse('ERR ids must be in order') end
end

-- Notes a page of a replay: its new cursor, how many of the selected entries were moved, and how many skipped for which reasons.
local function note_page(base, group, id, cursor, moved, skipped)
  local state, keys = keys_of_replay(base, id)
  local counts = {matched = moved, moved = moved}
  for reason, n in pairs(skipped) do
    counts.matched, counts['skipped:' .. reason] = counts.matched + n, n
  end
  for name, n in pairs(counts) do
    if n > 0 then redis.call('HINCRBY', state, name, n) end
  end
  redis.call('HSET', state, 'cursor', cursor)
  redis.call('HSET', base .. ':meta', 'replay:' .. id, group)
  redis.call('PEXPIRE', state, REMEMBERED_FOR)
  redis.call('PEXPIRE', keys, REMEMBERED_FOR)
  for _, outcome in ipairs({'acked', 'dead'}) do
    if not redis.call('HGET', base .. ':stats:' .. group, 'replay:' .. id .. ':' .. outcome) then
      redis.call('HSET', base .. ':stats:' .. group, 'replay:' .. id .. ':' .. outcome, '0')
    end
  end
end

-- The fence of a replay's entries, which is above that of all earlier deliveries of the group.
local function fence_of_replay(base, group, id)
  local state, meta = keys_of_replay(base, id), base .. ':meta'
  local fence = whole(redis.call('HGET', state, 'fence'))
  if fence then return fence end
  local last = whole(redis.call('HGET', meta, 'fence:' .. group)) or -FENCES
  fence = math.max(now_ms(), last + FENCES)
  redis.call('HSET', meta, 'fence:' .. group, string.format('%.0f', fence))
  redis.call('HSET', state, 'fence', string.format('%.0f', fence))
  return fence
end

-- The fields of an entry of the stream that the group has finished, and their size; or nil and why it is not replayed.
local function finished_entry(key, group, parked, last, id)
  if less(last, id) then return nil, 'undelivered' end
  -- it will be delivered again anyway
  if #redis.call('XPENDING', key, group, id, id, 1) > 0 or redis.call('HGET', parked, id) == 'retrying' then return nil, 'pending' end
  local e = redis.call('XRANGE', key, id, id)[1]
  if not e then return nil, 'gone' end
  return e[2], size_of(e[2])
end

-- Makes the fields of an entry that is replayed, with the header `x`. One with an ordering key gets the one with that key before
-- it in the replay as its predecessor, as others may have been left out.
local function replayed_fields(fields, x, ordering_key, keys)
  local kept, is_keyed = {}, false
  for i, part in ipairs(without_header(fields)) do
    if i % 2 == 1 and part == 'p' then is_keyed = true end
    kept[i] = part
  end
  if is_keyed then
    local name, before = redis.sha1hex(ordering_key), '0-0'
    local last = redis.call('HGET', keys, name)
    if x.origin and (not last or less(last, x.origin)) then
      before = last or before
      redis.call('HSET', keys, name, x.origin)
    end
    for i = 1, #kept, 2 do
      if kept[i] == 'p' then kept[i + 1] = before end
    end
  end
  add_header(kept, x)
  return kept, is_keyed
end

-- KEYS: stream. ARGV: base, group, replay id, source (stream|dead), cursor or '', new cursor, window, then of each selected entry:
-- id, why to skip it or '', ordering key or '', ...
-- Moves the entries after one cursor, up to another one, to the group's retry stream: copies of entries of the stream, or dead
-- letters. Left out is what is `gone`, `undelivered`, or `pending`, as the group will get it anyway, or larger than any message:
-- `invalid`. Returns {1, cursor that was reached, how many were moved, length of the retry stream}: with many or large entries, or
-- if the retry stream has as many as `window` by then, only the first ones are moved. {0, its cursor, 0, length} if the replay is
-- elsewhere; {-1, cursor, 0, length} if there is no room.
local function replay(keys, args)
  local count, from_dead, window = count_of(args, 8, 3, 0, PAGE), args[4] == 'dead', number_in(args[7], 1, MOST)
  if not from_dead and args[4] ~= 'stream' then refuse('ERR unknown source') end
  check_replay(args, 5, 8, 3)
  for i = 9, #args, 3 do
    if not string.find(args[i], '^%a*$') or #args[i] > LONGEST_REASON then refuse('ERR an argument must be a word of letters') end
    check_length(args[i + 1], LONGEST_TEXT)
  end
  local key, base, group, id, at, reached = keys[1], args[1], args[2], args[3], args[5], args[5]
  local retry_key, dlq_key, parked = base .. ':retry:' .. group, base .. ':dlq:' .. group, base .. ':parked:' .. group
  local state, ordering = keys_of_replay(base, id)
  local length, current = redis.call('XLEN', retry_key), redis.call('HGET', state, 'cursor') or ''
  if current ~= at then return {0, current, 0, length} end
  local g = type_of(key) == 'stream' and groups_of(key)[group]
  if not g or type_of(retry_key) ~= 'stream' then refuse('NOGROUP the stream has no such group') end
  local fence

  -- Returns why it is not moved, or '', and its size.
  local function move(entry, ordering_key)
    local fields, size, letter
    if from_dead then
      letter = redis.call('XRANGE', dlq_key, entry, entry)[1]
      if not letter then return 'gone', 0 end
      fields, size = letter[2], size_of(letter[2])
    else
      fields, size = finished_entry(key, group, parked, g['last-delivered-id'], entry)
      if not fields then return size, 0 end
    end
    if size > LARGEST then return 'invalid', size end
    fence = fence or fence_of_replay(base, group, id)
    local x = {origin = entry, attempts = 0, fence = fence, replay = id}
    if from_dead then
      local origin = field(fields, 'origin')
      x.origin = is_id(origin) and origin or nil
      x.fence = math.max(fence, (whole(field(fields, 'fence')) or 0) + 1)
    end
    local copy, is_keyed = replayed_fields(fields, x, ordering_key, ordering)
    redis.call('XADD', retry_key, '*', unpack(copy))
    if from_dead then redis.call('XDEL', dlq_key, entry) end
    -- receipts see a dead letter as a retry; they see nothing of what is replayed from the stream
    if x.origin and from_dead and redis.pcall('HGET', parked, x.origin) == 'dead' then
      redis.pcall('HSET', parked, x.origin, 'retrying')
    end
    if x.origin and is_keyed then redis.pcall('HSET', parked, 'replay:' .. x.origin, id) end
    return '', size
  end

  local moved, skipped, handled, left = 0, {}, 0, allowance()
  for i = 8, #args, 3 do
    local why, size = args[i + 1], 0
    if why == '' then
      if length + moved >= window or moved == MOVES or left.bytes <= 0 then break end
      local fine
      fine, why, size = pcall(move, args[i], args[i + 2])
      if not fine then
        -- what was moved before must be noted
        if handled == 0 then error(why, 0) end
        break
      end
    end
    spend(left, size)
    if why == '' then moved = moved + 1 else skipped[why] = (skipped[why] or 0) + 1 end
    reached, handled = args[i], handled + 1
  end
  if handled < count and handled == 0 then return {-1, at, 0, length} end
  if handled == count then reached = args[6] end
  if moved > 0 then tally(base .. ':stats:' .. group, 'replayed', moved) end
  note_page(base, group, id, reached, moved, skipped)
  return {1, reached, moved, length + moved}
end

-- KEYS: stream. ARGV: base, group, replay id, cursor or '', new cursor, id of a dead letter, ...
-- Removes selected dead letters after one cursor, up to another one. Returns {1, new cursor, how many were removed, length of the
-- retry stream}, or {0, its cursor, 0, length} if the replay is elsewhere.
local function drop(keys, args)
  local count = count_of(args, 6, 1, 0, PAGE)
  check_replay(args, 4, 6, 1)
  local base, group, id, moved = args[1], args[2], args[3], 0
  local length = redis.call('XLEN', base .. ':retry:' .. group)
  local current = redis.call('HGET', keys_of_replay(base, id), 'cursor') or ''
  if current ~= args[4] then return {0, current, 0, length} end
  if count > 0 then moved = redis.call('XDEL', base .. ':dlq:' .. group, unpack(args, 6)) end
  note_page(base, group, id, args[5], moved, moved < count and {gone = count - moved} or {})
  return {1, args[5], moved, length}
end

-- KEYS: stream. ARGV: base, group, replay id.
-- Returns {fields and values of the replay's state, how many of its messages the group has handled, how many became dead letters,
-- length of the retry stream}; no fields if nothing is known of it.
local function replay_state(keys, args)
  count_of(args, 4, 1, 0, 0)
  if not is_replay(args[3]) then refuse('ERR an argument must be the id of a replay') end
  local base, group, id = args[1], args[2], args[3]
  local counts = redis.call('HMGET', base .. ':stats:' .. group, 'replay:' .. id .. ':acked', 'replay:' .. id .. ':dead')
  return {redis.call('HGETALL', (keys_of_replay(base, id))), whole(counts[1] or '') or 0, whole(counts[2] or '') or 0,
    redis.call('XLEN', base .. ':retry:' .. group)}
end

-- KEYS: stream. ARGV: base, group, replay id.
-- Forgets a replay; what it has moved stays where it is. Returns 1 if anything was known of it.
local function end_replay(keys, args)
  count_of(args, 4, 1, 0, 0)
  if not is_replay(args[3]) then refuse('ERR an argument must be the id of a replay') end
  return forget_replay(args[1], args[2], args[3]) > 0 and 1 or 0
end

register('as1_replay', replay)
register('as1_drop', drop, {'allow-oom'})
register('as1_replay_state', replay_state, {'no-writes'})
register('as1_end_replay', end_replay, {'allow-oom'})
