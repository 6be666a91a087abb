-- Notes the state of effects that a group must not repeat, in one string each: `running <token>` with the token of the
-- delivery that began it, or `done`.

-- KEYS: stream. ARGV: done key, token, verb (begin|done|undone), lifetime in ms.
-- `begin` returns 1 if this delivery may bring the effect about, 0 if it is done, -1 if another delivery began it. `done`,
-- and `undone` if the effect did not come about, return 1 if that was noted, 0 if there was nothing to note.
local function once(keys, args)
  count_of(args, 5, 1, 0, 0)
  check_length(args[1], LONGEST_TEXT)
  check_length(args[2], LONGEST_NAME)
  local done_key, mine, verb, lifetime = args[1], 'running ' .. args[2], args[3], number_in(args[4], 1, LONGEST)
  if verb ~= 'begin' and verb ~= 'done' and verb ~= 'undone' then refuse('ERR unknown verb') end
  local state = redis.call('GET', done_key)
  if verb == 'begin' then
    if state == 'done' then return 0 end
    if state and state ~= mine then return -1 end
    redis.call('SET', done_key, mine, 'PX', lifetime)
    return 1
  end
  if verb == 'done' then
    redis.call('SET', done_key, 'done', 'PX', lifetime)
    return 1
  end
  if state ~= mine then return 0 end
  return redis.call('DEL', done_key)
end

register('as1_once', once, {'allow-oom'})
