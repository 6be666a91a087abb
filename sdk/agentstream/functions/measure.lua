-- Looking at many streams together, most of which are as they were.

-- KEYS: stream, ... ARGV: trust the server's lag? (0|1), then for each stream: base of derived keys, SHA-1 of what the
-- caller knows of it or '', how many groups are declared, declared group, ...
-- Returns the time, and for each stream what `look` says as a JSON object, '' where that is what the caller knows, or the
-- text of an error: one stream's must not hide the others.
local function measure(keys, args)
  local now, trusted, at = now_ms(), args[1] == '1', 2
  local reply = {now}
  for i, key in ipairs(keys) do
    local base, known, groups = args[at], args[at + 1], tonumber(args[at + 2])
    local fine, found = pcall(look, key, base, now, trusted, {unpack(args, at + 3, at + 2 + groups)})
    if fine then
      found = cjson.encode(found)
      if known ~= '' and redis.sha1hex(found) == known then found = '' end
    else
      found = type(found) == 'table' and found.err or tostring(found)
    end
    reply[i + 1], at = found, at + 3 + groups
  end
  return reply
end

redis.register_function{function_name = 'as1_measure', callback = measure, flags = {'no-writes'}}
