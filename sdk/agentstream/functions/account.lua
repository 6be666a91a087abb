-- A group's account: from where it began, what the group has read is settled or pending. What else it had read, others took.

-- The counters of a group that its account needs, as numbers. What an agent wrote instead of one counts as 0.
local function figures_of(base, group)
  local stats, names, figures = base .. ':stats:' .. group, {'settled', 'trimmed', 'overrun', 'retried', 'released', 'replayed',
    'resettled', 'base:read', 'base:settled', 'base:overrun', 'base:unsure'}, {}
  local values = redis.call('HMGET', stats, unpack(names))
  for i, name in ipairs(names) do figures[name] = whole(values[i] or '') or 0 end
  figures.began = values[8] and values[9] and not values[11]
  return figures
end

-- Begins the account: from now on, entries read must equal `read` and what is settled and pending.
local function begin_account(base, group, read)
  local now = figures_of(base, group)
  local gone = now.retried + now.released + now.replayed - now.resettled
    - redis.call('XLEN', base .. ':retry:' .. group) - redis.call('ZCARD', base .. ':delay:' .. group)
  local values = {read = read, settled = now.settled, trimmed = now.trimmed, overrun = now.overrun, gone = math.max(gone, 0)}
  for name, value in pairs(values) do
    redis.call('HSET', base .. ':stats:' .. group, 'base:' .. name, string.format('%.0f', value))
  end
  redis.call('HDEL', base .. ':stats:' .. group, 'base:unsure', 'base:taken')
end

-- Whether others took entries from a group that has read so many. Begins its account if it was not known where, and anew if it
-- shows more than was read, as when somebody moved the group back or made pending again what it had settled: that would hide
-- what is taken later.
local function check_account(key, base, g, read)
  local now, stats = figures_of(base, g.name), base .. ':stats:' .. g.name
  local taken = read - now['base:read'] - (now.settled - now['base:settled']) - (now.overrun - now['base:overrun']) - g.pending
  if now.began and taken >= 0 then return taken > 0 end
  -- what is pending and will be read again would count twice
  local again = redis.call('XPENDING', key, g.name, '(' .. g['last-delivered-id'], '+', 1)
  if #again == 0 and redis.call('EXISTS', stats) == 1 then begin_account(base, g.name, read - g.pending) end
  return false
end

-- Puts a group at an id, and begins its account if it is known how many entries are before that; so many of them are pending.
local function place(key, base, group, id, info, pending, left)
  local unread, exact = undelivered(key, info, {['last-delivered-id'] = id}, false, left)
  if exact then
    local read = info['entries-added'] - unread
    -- without ENTRIESREAD the server does not know the lag
    redis.call('XGROUP', 'SETID', key, group, id, 'ENTRIESREAD', string.format('%.0f', read))
    begin_account(base, group, read - pending)
  else
    redis.call('XGROUP', 'SETID', key, group, id)
    redis.call('HDEL', base .. ':stats:' .. group, 'base:read', 'base:settled', 'base:taken')
  end
end
