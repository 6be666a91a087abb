-- Notes the state of effects that a group must not repeat, in one string each: `running <token>` with the token of the
-- delivery that began it, or `done`.

-- KEYS: stream. ARGV: done key, token, lifetime in ms.
-- Returns 1 if this delivery may bring the effect about, 0 if it is done, -1 if another delivery began it. Adds a key, so a
-- server that is out of memory refuses it.
local function once(keys, args)
  count_of(args, 4, 1, 0, 0)
  check_length(args[1], LONGEST_TEXT)
  check_length(args[2], LONGEST_NAME)
  local done_key, mine, lifetime = args[1], 'running ' .. args[2], number_in(args[3], 1, LONGEST)
  local state = redis.call('GET', done_key)
  if state == 'done' then return 0 end
  if state and state ~= mine then return -1 end
  redis.call('SET', done_key, mine, 'PX', lifetime)
  return 1
end

-- KEYS: stream. ARGV: done key, token, verb (done|undone), lifetime in ms.
-- Notes that the effect came about, or that it did not. Returns 1 if that was noted, 0 if there was nothing to note.
local function end_once(keys, args)
  count_of(args, 5, 1, 0, 0)
  local done_key, mine, verb, lifetime = args[1], 'running ' .. args[2], args[3], number_in(args[4], 1, LONGEST)
  if verb ~= 'done' and verb ~= 'undone' then refuse('ERR unknown verb') end
  local state = redis.call('GET', done_key)
  -- nothing longer than what was there
  if state and verb == 'done' then
    redis.call('SET', done_key, 'done', 'PX', lifetime)
    return 1
  end
  if state ~= mine then return 0 end
  return redis.call('DEL', done_key)
end

register('as1_once', once)
register('as1_end_once', end_once, {'allow-oom'})
