-- Answers to requests.

-- KEYS: the reply stream of whoever asked. ARGV: lifetime in ms, field, value, ...
-- Adds an answer, and lets the stream live for at least that long. Whoever asked takes the first of several answers, so
-- it may be repeated. Returns the answer's id.
local function reply(keys, args)
  local key, lifetime = keys[1], args[1]
  local id = redis.call('XADD', key, '*', unpack(args, 2))
  -- one that has no end yet gets this one; one that has is only put off
  redis.call('PEXPIRE', key, lifetime, 'NX')
  redis.call('PEXPIRE', key, lifetime, 'GT')
  return id
end

redis.register_function{function_name = 'as1_reply', callback = reply}
