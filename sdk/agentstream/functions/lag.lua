-- Counts the undelivered and unsettled entries of a group, and repairs the lag that the server reports.

-- Ids cannot be read without the entries, so counting reads no more than `left` allows.

-- What XINFO says about a stream that exists. It brings the first and the last entry, too.
local function info_of(key, left)
  local info = map(redis.call('XINFO', 'STREAM', key))
  for _, name in ipairs({'first-entry', 'last-entry'}) do
    if info[name] then spend(left, size_of(info[name][2])) end
  end
  return info
end

-- The oldest undelivered id of a group, or nil.
local function oldest_unread(key, info, g, left)
  local first, last = info['first-entry'], g['last-delivered-id']
  if not first or not less(last, info['last-generated-id']) then return nil end
  if less(last, first[1]) then return first[1] end
  local following = redis.call('XRANGE', key, '(' .. last, '+', 'COUNT', 1)[1]
  if not following then return nil end
  spend(left, size_of(following[2]))
  return following[1]
end

-- Counts up to `limit` entries from one id to another, as far as `left` allows. Returns their number, and whether these are
-- all.
local function count_entries(key, from, to, limit, left)
  local n = 0
  while n < limit and left.bytes > 0 do
    local few = next_few(left, limit - n)
    local page = redis.call('XRANGE', key, from, to, 'COUNT', few)
    for _, entry in ipairs(page) do spend(left, size_of(entry[2])) end
    n = n + #page
    if #page < few then return n, true end
    from = '(' .. page[#page][1]
  end
  return n, false
end

-- The likely number of entries from one id to another, if they came evenly.
local function likely(info, from, to)
  local first, last = ms_of(info['first-entry'][1]), ms_of(info['last-generated-id'])
  return math.floor(info.length * (ms_of(to) - ms_of(from)) / math.max(last - first, 1))
end

-- The number of undelivered entries of a group, whether it is exact, and the oldest id or nil. The server's own lag is NULL
-- or wrong after deletions and trims, and for groups that were created at an id in between.
local function undelivered(key, info, g, trusted, left)
  local oldest = oldest_unread(key, info, g, left)
  if not oldest then return 0, true end
  if oldest == info['first-entry'][1] then return info.length, true, oldest end
  local native = g.lag
  if native and trusted then return math.min(native, info.length), true, oldest end
  local n, all = count_entries(key, oldest, '+', 2 * PAGE, left)
  if all then return n, true, oldest end
  return math.max(n, 1, math.min(native or likely(info, oldest, info['last-generated-id']), info.length - 1)), false, oldest
end

-- Sets the group's ENTRIESREAD if the server reports another lag than `unread`, the right one.
local function repair_lag(key, info, g, unread)
  local last = g['last-delivered-id']
  if g.lag == unread or (unread == 0 and last ~= info['last-generated-id']) then return end
  -- the server reports no lag while an entry ahead of the group was deleted
  if unread > 0 and not less(info['max-deleted-entry-id'], last) then return end
  redis.call('XGROUP', 'SETID', key, g.name, last, 'ENTRIESREAD', string.format('%.0f', info['entries-added'] - unread))
end

local function oldest_pending(key, g)
  if g.pending > 0 then return redis.call('XPENDING', key, g.name, '-', '+', 1)[1][1] end
end

-- The number of entries from the oldest pending to the last delivered one; an estimate if there are too many to count.
local function delivered_since(key, info, g, oldest, unread, left)
  local most, last = info.length - unread, g['last-delivered-id']
  -- nothing before it is left
  if most <= 0 or not less(info['first-entry'][1], oldest) then return math.max(most, 0) end
  local n, all = count_entries(key, oldest, last, 4 * PAGE, left)
  return all and n or math.min(math.max(n, g.pending, likely(info, oldest, last)), most)
end
