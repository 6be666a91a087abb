-- What pods leave behind that are gone.

-- KEYS: stream. ARGV: base, group, prefix. The pod whose consumers' names start with `prefix` is gone: what they hold
-- becomes claimable at once. Returns how many entries.
local function orphan(keys, args)
  local base, group, prefix, n = args[1], args[2], args[3], 0
  for _, key in ipairs({keys[1], base .. ':retry:' .. group}) do
    -- where the group is missing, nobody holds anything
    for _, entry in ipairs(redis.pcall('XPENDING', key, group)[4] or {}) do
      local name, start = entry[1], '-'
      while start and is_of_pod(name, prefix) do
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
  return n
end

-- KEYS: stream. ARGV: base, group, prefix. Removes the consumers of a pod that is gone, if they hold nothing: the server
-- would drop what a removed consumer holds. Returns the removed names.
local function remove_consumers(keys, args)
  local base, group, prefix, holding, places, removed = args[1], args[2], args[3], {}, {}, {}
  for _, key in ipairs({keys[1], base .. ':retry:' .. group}) do
    -- where the group is missing, it has no consumers
    for _, flat in ipairs(redis.pcall('XINFO', 'CONSUMERS', key, group)) do
      local c = map(flat)
      if is_of_pod(c.name, prefix) then
        places[c.name] = places[c.name] or {}
        table.insert(places[c.name], key)
        if c.pending > 0 then holding[c.name] = true end
      end
    end
  end
  for name, streams in pairs(places) do
    if not holding[name] then
      for _, key in ipairs(streams) do redis.call('XGROUP', 'DELCONSUMER', key, group, name) end
      removed[#removed + 1] = name
    end
  end
  return removed
end

redis.register_function{function_name = 'as1_orphan', callback = orphan, flags = {'allow-oom'}}
redis.register_function{function_name = 'as1_remove_consumers', callback = remove_consumers, flags = {'allow-oom'}}
