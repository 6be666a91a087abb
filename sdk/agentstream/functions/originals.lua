-- Tells messages from copies of them: remembers in which entry a group first met the bytes of a signed message.
--
-- Message and copy both lie within minutes of the time that was signed, by the times in their ids. Ids only grow, so what was
-- met is forgotten by ids and not by a clock: on a quiet stream it never is, whatever starts anew. It is kept in two hashes,
-- digest -> id, of which the older one goes at a time.

-- How far, in ms, the ids of a message and of its copy may be apart; signatures.py says what is refused anyway.
local APART = 450000
local DIGEST = 16
-- The most that one hash remembers. On a stream with more in that time, what was met before that is forgotten.
local REMEMBERED = 100000

-- KEYS: stream. ARGV: seen key, earlier key, original id, digest, ...
-- Returns for each of up to a page of entries the id of the first one with the digest.
local function originals(keys, args)
  local seen, earlier, firsts = args[1], args[2], {}
  count_of(args, 3, 2, 1, PAGE)
  local from, known = whole(redis.call('HGET', seen, 'from')), redis.call('HLEN', seen)
  for i = 3, #args, 2 do
    local id, digest = args[i], args[i + 1]
    check_id(id)
    if #digest ~= DIGEST then refuse('ERR a digest has 16 bytes') end
    local first = redis.call('HGET', seen, digest) or redis.call('HGET', earlier, digest)
    if not first then
      local ms = ms_of(id)
      if not from or ms > from + APART or known > REMEMBERED then
        redis.call('UNLINK', earlier)
        if known > 0 then redis.call('RENAME', seen, earlier) end
        redis.call('HSET', seen, 'from', string.format('%.0f', ms))
        from, known = ms, 1
      end
      redis.call('HSET', seen, digest, id)
      first, known = id, known + 1
    end
    firsts[#firsts + 1] = first
  end
  return firsts
end

register('as1_originals', originals, {'allow-oom'})
