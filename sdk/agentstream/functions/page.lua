-- Reads a stream, or dead letters, by their ids: for replays, and for who looks at messages.

-- Whether a text is an id, which may be left out itself by `(`.
local function is_bound(text) return is_id(string.match(text, '^%(?(.*)$')) end

-- KEYS: stream. ARGV: start id, end id, count, order (forward|backward).
-- Reads up to `count` entries, at most a page, between two ids: `-` and `+` are the first and the last of all, and an id after
-- `(` is left out itself. Returns {next or '', [{id, fields}]}: with next in place of the start, or of the end if it reads
-- backward, the next call goes on; '' says that there is nothing left. In place of the fields of an entry that is too large,
-- its size.
local function page(keys, args)
  count_of(args, 5, 1, 0, 0)
  local from, to, count, order = args[1], args[2], math.max(math.min(number_in(args[3], 0, MOST), PAGE), 1), args[4]
  if from ~= '-' and not is_bound(from) or to ~= '+' and not is_bound(to) then refuse('ERR an argument must be the id of an entry') end
  if order ~= 'forward' and order ~= 'backward' then refuse('ERR unknown order') end
  local entries, left = {}, allowance()
  while #entries < count and left.bytes > 0 do
    local few = next_few(left, count - #entries)
    local found
    if order == 'forward' then
      found = redis.call('XRANGE', keys[1], from, to, 'COUNT', few)
    else
      found = redis.call('XREVRANGE', keys[1], to, from, 'COUNT', few)
    end
    for _, e in ipairs(found) do
      local size = size_of(e[2])
      entries[#entries + 1] = {e[1], size > LARGEST and size or e[2]}
      -- something for each, however small they are
      spend(left, size + #e[1])
    end
    if #found < few then return {'', entries} end
    local last = found[#found][1]
    -- the server takes no range that begins after the last id of all
    if order == 'forward' and not after(last) then return {'', entries} end
    if order == 'forward' then from = '(' .. last else to = '(' .. last end
  end
  return {order == 'forward' and from or to, entries}
end

register('as1_page', page, {'no-writes'})
