-- The janitor: retention and admission of a stream, and consumers that are gone.

-- A consumer reads every few seconds, or holds entries. One that did neither for so many ms is gone.
local FORGET = 60000

-- A group with more consumers than any workload has is looked at once in so many ms, as the server lists all of them at once;
-- then so many of them are removed.
local CROWD, CROWD_EVERY, CROWD_PAGE = 1000, 60000, 20000

-- As many as this of a page were forgotten: another page at once. So a tenth of what is kept is outdated, at most.
local WORTHWHILE = PAGE / 10
-- The most nodes of a stream, with up to a hundred entries each, that one call removes.
local NODES = 500
-- The least number of entries to allow for removing: streams are trimmed by nodes, which have up to a thousand on our servers.
local NODE = 1000
-- For so many ms at least, what became of broadcasts is kept for who waits for it.
local KEPT = 60000
-- For so many ms, an entry that is larger than any message is left to consumers.
local TIME_FOR_OVERSIZED = 10000

-- Deletes the first and the last entry if they are larger than any message: the server copies both whenever it is asked about
-- the stream. Consumers have a while to make dead letters of them; groups that did not read one lose it. Returns whether it
-- deleted any.
local function delete_oversized(key, base, info, counted, now, r)
  local has_deleted = false
  for _, name in ipairs({'first-entry', 'last-entry'}) do
    local e = info[name]
    local age = e and now - ms_of(e[1])
    if e and size_of(e[2]) > LARGEST and (age < 0 or age >= TIME_FOR_OVERSIZED) and redis.call('XDEL', key, e[1]) == 1 then
      has_deleted = true
      for group, g in pairs(counted) do
        if less(g['last-delivered-id'], e[1]) then
          tally(base .. ':stats:' .. group, 'overrun', 1)
          r.overrun = r.overrun + 1
        end
      end
    end
  end
  return has_deleted
end

-- Does the part of each declared group. One whose keys stop it is left out, and named with the error: agents write these keys,
-- and must not keep the janitor from other groups.
local function for_each(declared, r, work)
  for _, d in ipairs(declared) do
    local fine, failure = pcall(work, d)
    if not fine then r.failed[d.name] = string.sub(type(failure) == 'table' and failure.err or tostring(failure), 1, 200) end
  end
end

-- Whether an undeclared group counts: one of its consumers was seen within a day.
local function is_alive(key, base, group, now)
  for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
    if map(flat).idle < DAY then return true end
  end
  local left = redis.call('HGET', base .. ':meta', 'left:' .. group)
  return left and now - left < DAY
end

local function set_if_changed(key, value)
  local current = redis.call('GET', key)
  if value then
    if current ~= value then redis.call('SET', key, value) end
  elseif current then
    redis.call('DEL', key)
  end
end

-- The value of the gate, as `as1_add` reads it. Where bytes are limited, nothing makes room but trimming.
local function gate_of(base, r, max_length, max_bytes, declared, open)
  if not r.gate then return nil end
  local gate = string.format('%.0f', r.gate)
  if max_bytes > 0 then return gate end
  for _, d in ipairs(declared) do
    local settled = whole(redis.pcall('HGET', base .. ':stats:' .. d.name, 'settled')) or 0
    gate = gate .. string.format(' %s=%.0f', d.name, r.length - math.min(open[d.name], r.length) - settled + max_length)
  end
  return gate
end

-- Moves a pending entry to the dead letters, or counts it if it was trimmed. Returns the size of what was moved.
local function expire(key, base, group, p, parked)
  local stats, e = base .. ':stats:' .. group, redis.call('XRANGE', key, p[1], p[1])
  if #e == 0 then
    count_trimmed(key, group, stats, false, p[1])
    return 0
  end
  bury(base .. ':dlq:' .. group, stats, parked, without_header(e[1][2]), {origin = p[1], fence = p[4]}, p[4], 'Expired',
    'pending for longer than retention.minAge while the stream was full')
  settled(key, group, stats, false, {p[1]})
  return size_of(e[1][2])
end

-- Expires pending entries that are older than the retention, and that a consumer let lapse; not what is nobody's. Looks at a
-- part of the pending entries, from where the last call stopped. Returns their number, and whether there are likely to be more.
local function expire_pending(key, base, group, lease, now, cut, parked, left)
  local stats = base .. ':stats:' .. group
  local idle = claimable_idle(lease, silence(stats, lease, now), now)
  local at, looked, n = cursor_of(stats, 'expire:at'), 0, 0
  while at and looked < SCAN and n < PAGE and left.bytes > 0 do
    local page = redis.call('XPENDING', key, group, at, cut, PAGE)
    at, looked = #page == PAGE and after(page[PAGE][1]), looked + #page
    for _, p in ipairs(page) do
      if left.bytes <= 0 then
        at = p[1]
        break
      end
      if p[3] >= idle and p[3] < nobodys_idle(now) then
        local size = expire(key, base, group, p, parked)
        spend(left, size)
        if size > 0 then n = n + 1 end
      end
    end
  end
  redis.call('HSET', stats, 'expire:at', at or '0-0')
  return n, at and (n >= WORTHWHILE or left.bytes <= 0)
end

-- Trims by length, even unsettled entries. Counts the unread entries that each declared group loses; pending ones are
-- counted by sweeping.
local function trim_oldest(key, base, length, max_length, limit, declared, waiting, known)
  local trimmed, overrun = redis.call('XTRIM', key, 'MAXLEN', '~', max_length, 'LIMIT', limit), 0
  for _, d in ipairs(declared) do
    local lost = waiting[d.name] - (length - trimmed)
    if lost > 0 then
      tally(base .. ':stats:' .. d.name, 'overrun', lost)
      overrun = overrun + lost
      -- an estimate: the account begins anew once the number is known
      if not known[d.name] then redis.call('HSET', base .. ':stats:' .. d.name, 'base:unsure', '1') end
    end
  end
  return trimmed, overrun
end

-- The groups that retention respects; or nil and the first declared group that is missing.
local function counted_groups(key, base, declared, now)
  local groups, counted = groups_of(key), {}
  for _, d in ipairs(declared) do
    if not groups[d.name] then return nil, d.name end
    counted[d.name] = groups[d.name]
  end
  for name, g in pairs(groups) do
    if not counted[name] and is_alive(key, base, name, now) then counted[name] = g end
  end
  return counted
end

-- How many consumers of a group may be removed now: none of a crowd, but for once a minute.
local function removable(stats, g, now)
  if g.consumers <= CROWD then return PAGE end
  local waited = now - (whole(redis.call('HGET', stats, 'crowd:at')) or 0)
  -- a time in the future is one that a consumer wrote, or the clock was set back
  if waited >= 0 and waited < CROWD_EVERY then return 0 end
  redis.call('HSET', stats, 'crowd:at', string.format('%.0f', now))
  return CROWD_PAGE
end

-- Records the id from which a group that was lost would resume. While entries that others took from it are neither delivered
-- again nor written off, it stays before these.
local function record_checkpoint(key, base, info, g, pending, unread)
  local checkpoint = g['last-delivered-id']
  if less(info['last-generated-id'], checkpoint) then return end
  local stats = base .. ':stats:' .. g.name
  local lost = redis.pcall('HGET', stats, 'base:taken') == '1'
  if unread then
    local fine, is_lost = pcall(check_account, key, base, g, info['entries-added'] - unread)
    if fine and is_lost ~= lost then redis.call('HSET', stats, 'base:taken', is_lost and '1' or '0') end
    lost = fine and is_lost
  end
  if lost then return end
  if pending and not less(checkpoint, pending) then checkpoint = before(pending) end
  if redis.call('HGET', base .. ':meta', 'checkpoint:' .. g.name) ~= checkpoint then
    redis.call('HSET', base .. ':meta', 'checkpoint:' .. g.name, checkpoint)
  end
end

-- Trims entries older than `minid`, in whole nodes, which is cheap; to the very entry if `exact`.
local function trim_before(key, minid, limit, exact)
  local trimmed = redis.call('XTRIM', key, 'MINID', '~', minid, 'LIMIT', limit)
  -- below half of the limit, only a part of one node is left to trim
  if exact and trimmed < limit / 2 then trimmed = trimmed + redis.call('XTRIM', key, 'MINID', '=', minid) end
  return trimmed
end

-- Takes entries off those that receipts may ask for which all groups have finished, as they are before `floor`: a page per
-- call. That a group lost one is noted. Returns whether there is likely to be more.
local function finish_receipts(base, declared, r, floor)
  local receipts, finished, dropped = base .. ':receipts', {}, 0
  local page = redis.call('ZRANGE', receipts, 0, PAGE, 'WITHSCORES')
  for i = 1, #page, 2 do
    local id = page[i]
    if is_id(id) and ms_of(id) == tonumber(page[i + 1]) then
      if less(id, floor) then finished[#finished + 1] = id end
    elseif id ~= 'since' then
      -- no function wrote that
      dropped = dropped + redis.call('ZREM', receipts, id)
    end
  end
  if #finished == 0 then return dropped >= WORTHWHILE end
  for_each(declared, r, function(d)
    local parked = base .. ':parked:' .. d.name
    for _, id in ipairs(finished) do
      local noted = redis.call('HGET', parked, id)
      if noted == 'acknowledged' then
        redis.call('HDEL', parked, id)
      elseif not noted then
        redis.call('HSET', parked, id, 'missing')
      end
    end
  end)
  redis.call('ZREM', receipts, unpack(finished))
  return #finished + dropped >= PAGE / 2
end

-- Deletes the `parked` state of entries that are too old for receipts, a page per call. Settling deletes that of retries;
-- here it is deleted if the retries were deleted by hand, as entries with the same key would wait for ever.
-- What was forgotten last is noted as `since`: receipts know nothing of what is older. Returns whether there is likely to be
-- more.
local function forget_parked(base, group, minid, broadcast)
  local parked, stats, forgotten = base .. ':parked:' .. group, base .. ':stats:' .. group, 0
  if redis.call('EXISTS', parked) == 0 then return false end
  local retries = redis.call('XLEN', base .. ':retry:' .. group) + redis.call('ZCARD', base .. ':delay:' .. group)
  local at = string.match(redis.call('HGET', stats, 'forget:at') or '', '^%d+$')
  local page = redis.call('HSCAN', parked, at and #at < 20 and at or '0', 'COUNT', PAGE)
  local since = broadcast and redis.call('HGET', parked, 'since')
  if not is_id(since) then since = nil end
  for i = 1, #page[2], 2 do
    local id, state = page[2][i], page[2][i + 1]
    local is_replayed = is_replay(state) and is_id(string.match(id, '^replay:(.*)$'))
    -- an agent may have written something else than an id
    local is_over = not is_replayed and #state > LONGEST_ID or (state == 'retrying' or is_replayed) and retries == 0
      or state ~= 'retrying' and not is_replayed and not (is_id(id) and not less(id, minid))
    -- receipts ask for what is not too old: its retry was lost
    if is_over and state == 'retrying' and broadcast and is_id(id) and not less(id, minid) then
      redis.call('HSET', parked, id, 'missing')
    elseif is_over and not (broadcast and id == 'since') then
      redis.call('HDEL', parked, id)
      forgotten = forgotten + 1
      if broadcast and is_id(id) and not (since and less(id, since)) then since = id end
    end
  end
  if since then redis.call('HSET', parked, 'since', since) end
  redis.call('HSET', stats, 'forget:at', page[1])
  return page[1] ~= '0' and forgotten >= WORTHWHILE
end

-- Whether a declared group retries an entry.
local function is_retried(base, declared, id)
  for _, d in ipairs(declared) do
    if redis.pcall('HGET', base .. ':parked:' .. d.name, id) == 'retrying' then return true end
  end
  return false
end

-- Deletes the last entries of ordering keys, a page per call, that are before `minid`, so no longer on the stream, and that
-- no group retries. Returns whether there is likely to be more.
local function forget_order(base, declared, minid)
  local order, meta, forgotten = base .. ':order', base .. ':meta', 0
  if redis.call('EXISTS', order) == 0 then return false end
  local page = redis.call('HSCAN', order, redis.call('HGET', meta, 'order:at') or '0', 'COUNT', PAGE)
  for i = 1, #page[2], 2 do
    local id = page[2][i + 1]
    -- a producer may have written something else than an id, and for a longer key than any message has
    if not is_id(id) or #page[2][i] > LONGEST_TEXT or (less(id, minid) and not is_retried(base, declared, id)) then
      redis.call('HDEL', order, page[2][i])
      forgotten = forgotten + 1
    end
  end
  redis.call('HSET', meta, 'order:at', page[1])
  return page[1] ~= '0' and forgotten >= WORTHWHILE
end

-- KEYS: stream. ARGV: base, min age in ms, max length, max bytes or 0, on full, limit, trust the server's lag? (0|1),
-- broadcast? (0|1), then of each declared group: name, lease, ms for which to keep dead letters or 0, ...
-- Mends and moves retries, removes consumers that are gone, records each group's checkpoint, repairs the lag that the server
-- reports, trims entries that all groups have settled and the retention allows, deletes old state of receipts and
-- ordering keys, and sets the length at which adding is refused. With 0, dead letters are kept for ever and no pending
-- entry becomes one. Returns a JSON object of what it did and found.
local function janitor(keys, args)
  count_of(args, 9, 3, 0, 2 * PAGE)
  local key, base, retention, max_length, max_bytes = keys[1], args[1], number_in(args[2], 0, MOST), number_in(args[3], 0, MOST),
    number_in(args[4], 0, MOST)
  local on_full, limit, trusted, broadcast = args[5], number_in(args[6], 1, MOST), flag(args[7]), flag(args[8])
  local now, r = now_ms(), {trimmed = 0, overrun = 0, moved = 0, expired = 0, forgotten = 0, shortened = false,
    refusing = false, more = false, failed = {}}
  local declared = {}
  for i = 9, #args, 3 do
    declared[#declared + 1] = {name = args[i], lease = number_in(args[i + 1], 0, LONGEST), keep_dead = number_in(args[i + 2], 0, MOST)}
  end
  local reading, moving = allowance(), allowance()
  for_each(declared, r, function(d)
    local stats, delay_key = base .. ':stats:' .. d.name, base .. ':delay:' .. d.name
    -- while there are no consumers, which wait for what is due, nobody else would
    r.more = mend(stats, delay_key, now, moving) or r.more
    local moved, more = move_due(stats, delay_key, base .. ':retry:' .. d.name, now, PAGE - r.moved, moving)
    r.moved, r.more = r.moved + moved, r.more or more
  end)
  r.type = type_of(key)
  if r.type ~= 'stream' then return cjson.encode(r) end
  local info = info_of(key, reading)
  r.length = info.length
  limit = math.min(limit, math.max(NODE, math.ceil(NODES * info.length / math.max(info['radix-tree-keys'], 1))))
  local counted
  counted, r.missing = counted_groups(key, base, declared, now)
  -- it is not known where a missing group will resume, so nothing may be trimmed
  if r.missing then return cjson.encode(r) end
  if delete_oversized(key, base, info, counted, now, r) then
    info, r.more = info_of(key, reading), true
  end
  for_each(declared, r, function(d)
    local limit = removable(base .. ':stats:' .. d.name, counted[d.name], now)
    if limit == 0 then return end
    local gone = #remove_consumers(key, base, d.name, limit, function(_, idle) return idle >= FORGET end)
    r.forgotten, r.more = r.forgotten + gone, r.more or gone == PAGE
    -- what they held is pending no more
    if gone > 0 then counted[d.name] = groups_of(key)[d.name] end
  end)
  -- if the clock jumped ahead, nothing is trimmed before new entries have ids of the new time
  local clock = math.min(now, ms_of(info['last-generated-id']))
  local open, waiting, pending, known = {}, {}, {}, {}
  local floor, held_by
  -- after the last id of all there is none
  local following = after(info['last-generated-id']) or info['last-generated-id']
  for name, g in pairs(counted) do
    local unread, exact, oldest = undelivered(key, info, g, trusted, reading)
    known[name] = exact
    open[name], waiting[name], pending[name] = unread, unread, oldest_pending(key, g)
    if pending[name] then
      open[name] = open[name] + delivered_since(key, info, g, pending[name], unread, reading)
      if not oldest or less(pending[name], oldest) then oldest = pending[name] end
    end
    record_checkpoint(key, base, info, g, pending[name], exact and unread)
    if oldest and (not held_by or less(oldest, floor)) then floor, held_by = oldest, name end
  end
  for _, d in ipairs(declared) do
    if known[d.name] then repair_lag(key, info, counted[d.name], waiting[d.name]) end
  end
  if not held_by and next(counted) then floor = following end
  -- without declared groups, all entries count as unsettled
  local unsettled = #declared == 0 and info.length or 0
  for _, d in ipairs(declared) do unsettled = math.max(unsettled, math.min(open[d.name], info.length)) end
  r.unsettled = unsettled
  if max_bytes > 0 and info.length > 0 then
    r.bytes = redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 5)
    if r.bytes > max_bytes then
      max_length = math.max(1, math.min(max_length, math.floor(info.length * max_bytes / r.bytes)))
    end
  end
  local cut = string.format('%.0f-0', math.max(clock - retention, 0))
  local minid = cut
  if floor and less(floor, minid) then minid, r.held_by = floor, held_by end
  r.trimmed = trim_before(key, minid, limit, on_full == 'Backpressure' and info.length >= max_length)
  local excess = info.length - r.trimmed - max_length
  if on_full == 'TrimOldest' and excess > 0 then
    local n, overrun = trim_oldest(key, base, info.length - r.trimmed, max_length, limit, declared, waiting, known)
    r.trimmed, r.overrun = r.trimmed + n, r.overrun + overrun
  elseif on_full == 'TrimAcknowledged' and floor and excess > 0 then
    -- LIMIT bounds the number, MINID trims only entries that every group has settled
    local n = redis.call('XTRIM', key, 'MINID', '~', floor, 'LIMIT', math.min(excess, limit))
    r.trimmed, r.shortened = r.trimmed + n, n > 0
  end
  r.more = r.more or r.trimmed >= limit / 2
  r.length = info.length - r.trimmed
  if on_full == 'Backpressure' then
    r.gate, r.refusing = max_length, r.length >= max_length
  elseif on_full == 'TrimAcknowledged' then
    r.gate, r.refusing = math.max(r.length - unsettled, 0) + max_length, unsettled >= max_length
  end
  set_if_changed(base .. ':gate', gate_of(base, r, max_length, max_bytes, on_full == 'TrimAcknowledged' and declared or {}, open))
  -- trimming by length may remove pending entries
  local first = r.trimmed > 0 and redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1] or r.trimmed == 0 and info['first-entry']
  local recent = string.format('%.0f-0', math.max(clock - KEPT, 0))
  local kept = first and first[1] or following
  if floor and less(floor, kept) then kept = floor end
  r.more = forget_order(base, declared, kept) or r.more
  if broadcast then r.more = finish_receipts(base, declared, r, floor or kept) or r.more end
  for_each(declared, r, function(d)
    r.more = forget_parked(base, d.name, less(recent, minid) and recent or minid, broadcast) or r.more
    if d.keep_dead > 0 then
      if r.refusing and pending[d.name] then
        local parked = broadcast and base .. ':parked:' .. d.name or ''
        local expired, more = expire_pending(key, base, d.name, d.lease, now, cut, parked, moving)
        r.expired, r.more = r.expired + expired, r.more or more
      end
      local keep_from = string.format('%.0f-0', math.max(clock - d.keep_dead, 0))
      r.more = redis.call('XTRIM', base .. ':dlq:' .. d.name, 'MINID', '~', keep_from, 'LIMIT', NODE) >= NODE / 2 or r.more
    end
  end)
  return cjson.encode(r)
end

register('as1_janitor', janitor, {'allow-oom'})
