-- Releases the entries, and removes the consumers, of pods that are gone and of processes that were restarted.

-- Whether a consumer's name is `<prefix><start in base 36>-...` with a start before so many ms since 1970; '' stands for
-- any time. A name that ends otherwise counts as old.
local function has_left(name, prefix, before)
  if not is_of_pod(name, prefix) then return false end
  local start = (before or '') ~= '' and tonumber(string.match(name, '^[^-]*', #prefix + 1), 36)
  return not start or start < tonumber(before)
end

-- The most bytes for names of pods that are gone for good: about a hundred, the last ones.
local REMEMBERED = 5000

local function remember(stats, prefix)
  local gone = redis.call('HGET', stats, 'gone') or ' '
  if #gone > REMEMBERED or string.sub(gone, 1, 1) ~= ' ' or string.sub(gone, -1) ~= ' ' then
    gone = ' '
    tally(stats, 'unreadable', 1)
  end
  if string.find(gone, ' ' .. prefix .. ' ', 1, true) then return end
  gone = gone .. prefix .. ' '
  while #gone > REMEMBERED do gone = string.gsub(gone, '^ [^ ]*', '') end
  redis.call('HSET', stats, 'gone', gone)
end

-- The first `count` entries from `start` on that these consumers hold, as {id, consumer}; and where to go on, or ''.
local function page_of(key, group, names, start, count)
  local found, share, last = {}, math.max(math.ceil(count / math.max(#names, 1)), CHUNK), nil
  for _, name in ipairs(names) do
    local page = redis.call('XPENDING', key, group, start, '+', share, name)
    for _, p in ipairs(page) do found[#found + 1] = {p[1], name, sortable(p[1])} end
    -- beyond the last one of a full page, some of this consumer's are missing
    local id = #page == share and sortable(page[share][1])
    if id and (not last or id < last) then last = id end
  end
  if #names > 1 then table.sort(found, function(a, b) return a[3] < b[3] end) end
  local n = 0
  while n < math.min(#found, count) and not (last and last < found[n + 1][3]) do n = n + 1 end
  local next_start = (last or n < #found) and after(found[n][1]) or ''
  for i = #found, n + 1, -1 do found[i] = nil end
  return found, next_start
end

-- KEYS: stream. ARGV: base, group, prefix, ms since 1970 or '', for good? (0|1), retry stream? (0|1), start id.
-- Makes a page of the entries from `start` on claimable at once that consumers hold whose names start with `prefix` and whose
-- processes started before that time. For good means that no pod will have the name again: its consumers claim no entry
-- from now on that another one held. Returns {next start or '', number of entries}.
local function orphan(keys, args)
  count_of(args, 8, 1, 0, 0)
  flag(args[5])
  flag(args[6])
  if args[4] ~= '' then number_in(args[4], 0, MOST) end
  if args[7] ~= '-' then check_id(args[7]) end
  local base, group, prefix, from_retry, start, n = args[1], args[2], args[3], args[6] == '1', args[7], 0
  local stats, key = base .. ':stats:' .. group, from_retry and base .. ':retry:' .. group or keys[1]
  if args[5] == '1' and redis.call('EXISTS', keys[1]) == 1 then remember(stats, prefix) end
  local names = {}
  -- without a group there is nothing pending
  for _, entry in ipairs(redis.pcall('XPENDING', key, group)[4] or {}) do
    if has_left(entry[1], prefix, args[4]) then names[#names + 1] = entry[1] end
  end
  local page, next_start = page_of(key, group, names, start, PAGE)
  for _, one in ipairs(page) do
    local claimed = redis.call('XCLAIM', key, group, one[2], 0, one[1], 'TIME', NOBODYS, 'JUSTID')
    -- XCLAIM takes a trimmed entry off the group
    if #claimed == 0 then count_trimmed(key, group, stats, from_retry, one[1]) end
    n = n + #claimed
  end
  if n > 0 then look_from_the_start(stats) end
  return {next_start, n}
end

-- Removes the consumers of a group for which `is_gone(name, idle ms)` is true and that hold nothing on either of its
-- streams: the server would drop the entries of a removed consumer. The next command of a living one creates it again.
-- Returns the removed names, at most `limit`.
local function remove_consumers(key, base, group, limit, is_gone)
  local found, removed = {}, {}
  for _, stream in ipairs({key, base .. ':retry:' .. group}) do
    -- without a group there are no consumers; there may be a crowd: no table for each field
    for _, flat in ipairs(redis.pcall('XINFO', 'CONSUMERS', stream, group)) do
      local name, pending, idle = flat[2], flat[4], flat[6]
      local known = found[name]
      if known then
        pending, idle = known.pending + pending, math.min(known.idle, idle)
      end
      found[name] = {pending = pending, idle = idle, also = known and stream, stream = known and known.stream or stream}
    end
  end
  local remain, last_seen = false
  for name, c in pairs(found) do
    -- no process has too long a name, which would be copied at each look: what it holds, others took from the group
    if #removed < limit and (c.pending == 0 and is_gone(name, c.idle) or #name > LONGEST_NAME) then
      redis.call('XGROUP', 'DELCONSUMER', c.stream, group, name)
      if c.also then redis.call('XGROUP', 'DELCONSUMER', c.also, group, name) end
      removed[#removed + 1] = name
      last_seen = math.max(last_seen or 0, now_ms() - c.idle)
    else
      remain = true
    end
  end
  -- retention respects a group that is no longer declared until a day after this
  if last_seen and not remain then
    redis.call('HSET', base .. ':meta', 'left:' .. group, string.format('%.0f', last_seen))
  end
  return removed
end

-- KEYS: stream. ARGV: base, group, prefix, ms since 1970 or ''.
-- Removes the consumers of such processes, as in as1_orphan, that hold nothing. Returns the removed names; call it again
-- after a full page.
local function remove_consumers_of_pod(keys, args)
  count_of(args, 5, 1, 0, 0)
  if args[4] ~= '' then number_in(args[4], 0, MOST) end
  return remove_consumers(keys[1], args[1], args[2], PAGE, function(name) return has_left(name, args[3], args[4]) end)
end

register('as1_orphan', orphan, {'allow-oom'})
register('as1_remove_consumers', remove_consumers_of_pod, {'allow-oom'})
