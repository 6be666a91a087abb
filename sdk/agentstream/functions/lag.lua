-- Counts the undelivered and unsettled entries of a group, and repairs the lag that the server reports.

-- The number of undelivered entries of a group, whether it is exact, and the oldest id or nil. The server's own lag is NULL
-- or wrong after deletions and trims, and for groups that were created at an id in between.
local function undelivered(key, info, g, trusted)
  if not less(g['last-delivered-id'], info['last-generated-id']) then return 0, true end
  local nxt = redis.call('XRANGE', key, '(' .. g['last-delivered-id'], '+', 'COUNT', 1)
  if #nxt == 0 then return 0, true end
  local oldest = nxt[1][1]
  if oldest == info['first-entry'][1] then return info.length, true, oldest end
  local native = g.lag
  if native and trusted then return math.min(native, info.length), true, oldest end
  local n, from = 0, oldest
  while n < 2 * PAGE do
    local page = redis.call('XRANGE', key, from, '+', 'COUNT', PAGE)
    n = n + #page
    if #page < PAGE then return n, true, oldest end
    from = '(' .. page[#page][1]
  end
  local first, last = ms_of(info['first-entry'][1]), ms_of(info['last-generated-id'])
  local guess = native and math.min(native, info.length)
    or math.floor(info.length * (last - ms_of(oldest)) / math.max(last - first, 1))
  return math.max(n, guess), false, oldest
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
  if g.pending > 0 then return redis.call('XPENDING', key, g.name)[2] end
end

-- The number of entries from the oldest unsettled to the last delivered one; an estimate if there are too many to count.
local function delivered_since(key, info, oldest, last_delivered)
  local n, from = 0, oldest
  while n < 4 * PAGE do
    local page = redis.call('XRANGE', key, from, last_delivered, 'COUNT', PAGE)
    n = n + #page
    if #page < PAGE then return n end
    from = '(' .. page[#page][1]
  end
  local first, last = ms_of(info['first-entry'][1]), ms_of(info['last-generated-id'])
  return math.max(n, math.floor(info.length * (ms_of(last_delivered) - ms_of(oldest)) / math.max(last - first, 1)))
end
