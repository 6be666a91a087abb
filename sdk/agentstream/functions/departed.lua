-- What pods leave behind that are gone, and processes that were started again.

-- Whether a name is that of a process of a pod that started before so many ms since 1970, which the name ends with; '' is
-- any time. A name that ends otherwise is taken for an old one.
local function has_left(name, prefix, before)
  if not is_of_pod(name, prefix) then return false end
  local start = (before or '') ~= '' and tonumber(string.sub(name, #prefix + 1), 36)
  return not start or start < tonumber(before)
end

-- Bytes that the names of the pods may take that are gone for good: about a hundred, the last ones.
local REMEMBERED = 5000

local function remember(stats, prefix)
  local gone = redis.call('HGET', stats, 'gone') or ' '
  if string.find(gone, ' ' .. prefix .. ' ', 1, true) then return end
  gone = gone .. prefix .. ' '
  while #gone > REMEMBERED do gone = string.gsub(gone, '^ [^ ]+', '') end
  redis.call('HSET', stats, 'gone', gone)
end

-- KEYS: stream. ARGV: base, group, prefix, ms since 1970 or '', for good? (0|1). The processes of the pod whose consumers'
-- names start with `prefix` that started before that time are gone: what they hold becomes claimable at once. If no pod
-- will have that name again, they claim nothing from now on that others held. Returns how many entries.
local function orphan(keys, args)
  local base, group, prefix, n = args[1], args[2], args[3], 0
  if args[5] == '1' and redis.call('EXISTS', keys[1]) == 1 then remember(base .. ':stats:' .. group, prefix) end
  for _, key in ipairs({keys[1], base .. ':retry:' .. group}) do
    -- where the group is missing, nobody holds anything
    for _, entry in ipairs(redis.pcall('XPENDING', key, group)[4] or {}) do
      local name, start = entry[1], '-'
      while start and has_left(name, prefix, args[4]) do
        local page = redis.call('XPENDING', key, group, start, '+', PAGE, name)
        for _, p in ipairs(page) do
          local claimed = redis.call('XCLAIM', key, group, name, 0, p[1], 'IDLE', CLAIMABLE, 'JUSTID')
          -- the server takes an entry that is no more off the group
          if #claimed == 0 then count_trimmed(key, group, base .. ':stats:' .. group, key ~= keys[1], p[1]) end
          n = n + #claimed
        end
        start = #page == PAGE and '(' .. page[#page][1] or nil
      end
    end
  end
  if n > 0 then look_from_the_start(base .. ':stats:' .. group) end
  return n
end

-- Removes those consumers of a group for which `is_gone(name, ms of idleness)` is true, if they hold nothing on either of
-- its streams: the server would drop what a removed consumer holds. One that lives is made again by its next command.
-- Returns the removed names.
local function remove_consumers(key, base, group, is_gone)
  local found, removed = {}, {}
  for _, stream in ipairs({key, base .. ':retry:' .. group}) do
    -- where the group is missing, it has no consumers
    for _, flat in ipairs(redis.pcall('XINFO', 'CONSUMERS', stream, group)) do
      local c = map(flat)
      local known = found[c.name] or {streams = {}, pending = 0, idle = c.idle}
      known.streams[#known.streams + 1] = stream
      known.pending, known.idle = known.pending + c.pending, math.min(known.idle, c.idle)
      found[c.name] = known
    end
  end
  local remain, last_seen = false
  for name, c in pairs(found) do
    if c.pending == 0 and is_gone(name, c.idle) then
      for _, stream in ipairs(c.streams) do redis.call('XGROUP', 'DELCONSUMER', stream, group, name) end
      removed[#removed + 1] = name
      last_seen = math.max(last_seen or 0, now_ms() - c.idle)
    else
      remain = true
    end
  end
  -- should the group be declared no longer, this is how long it has been left
  if last_seen and not remain then
    redis.call('HSET', base .. ':meta', 'left:' .. group, string.format('%.0f', last_seen))
  end
  return removed
end

-- KEYS: stream. ARGV: base, group, prefix, ms since 1970 or ''. Removes the consumers of processes that are gone, as above,
-- if they hold nothing. Returns the removed names.
local function remove_consumers_of_pod(keys, args)
  return remove_consumers(keys[1], args[1], args[2], function(name) return has_left(name, args[3], args[4]) end)
end

redis.register_function{function_name = 'as1_orphan', callback = orphan, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_remove_consumers', callback = remove_consumers_of_pod, flags = {'allow-oom'}}
