-- Tells where a message is in a group, for who looks at messages.

-- What it costs to look at an entry, in bytes, however small it is.
local LOOK = 1000

-- The header `x` of an entry that is tried again, as it stands there, if it is no longer than the functions write one.
local function header_text(fields)
  local x = field(fields, 'x') or ''
  return #x <= 8 * LONGEST_TEXT and x or ''
end

-- Looks for the delayed retry of a message from `rank` on, as far as `left` allows. Returns {due, header} or {}, and the rank to
-- go on from; '' at the end.
local function find_delayed(delay_key, id, rank, left)
  while left.bytes > 0 do
    local few = next_few(left, PAGE)
    local found = redis.call('ZRANGE', delay_key, rank, rank + few - 1, 'REV', 'WITHSCORES')
    for i = 1, #found, 2 do
      spend(left, #found[i] + LOOK)
      -- the id is at the start of what the functions write
      if string.find(string.sub(found[i], 1, LONGEST_ID + 8), id, 1, true) then
        local fields = #found[i] <= LARGEST and delayed(found[i])
        if fields and header(fields, true).origin == id then
          return {found[i + 1], header_text(fields)}, ''
        end
      end
    end
    rank = rank + #found / 2
    if #found < 2 * few then return {}, '' end
  end
  return {}, string.format('%.0f', rank)
end

-- Who holds an entry: {consumer, idle in ms, deliveries}, or {}.
local function holder(key, group, id)
  local fine, p = pcall(function() return redis.call('XPENDING', key, group, id, id, 1)[1] end)
  return fine and p and {p[2], p[3], p[4]} or {}
end

-- Looks for a message on the retry stream, the newest first, from before `to` on. Returns {id, header, ...} with who holds it, or
-- {}, and where to go on; '' at the end.
local function find_retry(retry_key, group, id, to, left)
  while left.bytes > 0 do
    local few = next_few(left, PAGE)
    local found = redis.call('XREVRANGE', retry_key, to, '-', 'COUNT', few)
    for _, e in ipairs(found) do
      spend(left, size_of(e[2]) + LOOK)
      local x = field(e[2], 'x')
      if e[1] == id or x and string.find(x, id, 1, true) and header(e[2], true).origin == id then
        local at = {e[1], header_text(e[2])}
        for _, part in ipairs(holder(retry_key, group, e[1])) do at[#at + 1] = part end
        return at, ''
      end
    end
    if #found < few then return {}, '' end
    to = '(' .. found[#found][1]
  end
  return {}, to
end

-- KEYS: stream. ARGV: base, group, id, rank or '', retries before or ''.
-- Looks where a message is in a group that has not settled it: in one call, as it moves meanwhile; what is due later and the
-- retries are looked through from `rank` and `retries before` on, each unless it is ''. Returns {last delivered id, or '' without
-- the group; is it on the stream? (0|1); what is noted of it, or ''; {consumer, idle in ms, deliveries} if it is held;
-- {due, header} if it is delayed; {id, header} on the retry stream, with consumer, idle and deliveries if it is held there;
-- next rank or ''; next retries before or ''; what changes with each retry}.
local function whereabouts(keys, args)
  count_of(args, 6, 1, 0, 0)
  local key, base, group, id = keys[1], args[1], args[2], args[3]
  check_id(id)
  local retry_key, delay_key = base .. ':retry:' .. group, base .. ':delay:' .. group
  local left, last = allowance(), ''
  -- without a stream there are no groups
  for _, flat in ipairs(redis.pcall('XINFO', 'GROUPS', key)) do
    local g = map(flat)
    if g.name == group then last = g['last-delivered-id'] end
  end
  local is_there = #redis.call('XRANGE', key, id, id)
  local noted = redis.call('HGET', base .. ':parked:' .. group, id) or ''
  local held, is_delayed, is_retried = last == '' and {} or holder(key, group, id), {}, {}
  local rank, before_id = args[4], args[5]
  if before_id ~= '' and before_id ~= '+' and not is_id(string.match(before_id, '^%(?(.*)$')) then refuse('ERR an argument must be the id of an entry') end
  -- it is in one place only
  if #held > 0 then rank, before_id = '', '' end
  if rank ~= '' then is_delayed, rank = find_delayed(delay_key, id, number_in(rank, 0, MOST), left) end
  if #is_delayed > 0 then before_id = '' end
  if before_id ~= '' then is_retried, before_id = find_retry(retry_key, group, id, before_id, left) end
  local moves = {redis.call('ZCARD', delay_key), redis.call('XLEN', retry_key)}
  for i, value in ipairs(redis.call('HMGET', base .. ':stats:' .. group, 'retried', 'released', 'replayed', 'resettled')) do
    moves[2 + i] = string.format('%.0f', whole(value) or 0)
  end
  return {last, is_there, #noted <= LONGEST_NAME and noted or '', held, is_delayed, is_retried, rank, before_id,
    table.concat(moves, ' ')}
end

register('as1_whereabouts', whereabouts, {'no-writes'})
