#!lua name=agentstream1
-- What must happen atomically on the server, for agents and for the operator.
--
-- `1` in the library's and the functions' names is the number of this interface: within it, changes are
-- backward compatible and only raise REVISION; an incompatible change is a new library beside this one.
-- A function runs with the rights of its caller. The declared key is always the stream itself; keys derived from
-- it go in as arguments, so that each of the caller's selectors decides about its own (DESIGN: access).
-- Error replies are constant text. Times are milliseconds of the server's clock.
--
-- The files of this directory are one text for the server, in the order that library.py gives. Each registers its own
-- functions: registration sees no globals but `redis`. All but those that add messages must work on a server that is
-- out of memory (`allow-oom`), so that consumers can drain it.
local REVISION = 5

-- What became of an entry that somebody wanted to settle or renew.
local DONE, GONE, TAKEN, TRIMMED = 1, 0, -1, -2
-- A day: longer than any lease, so an entry with this idle time is anybody's; XCLAIM ignores an IDLE past the epoch.
local CLAIMABLE = 86400000
local PAGE = 500
local LAST_SEQUENCE = '18446744073709551615'

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function ms_of(id) return tonumber(string.match(id, '^(%d+)')) end

-- Ids are compared and counted as digits: each of their parts has 64 bits, a Lua number only 53.
local function parts(id) return string.match(id, '^(%d+)-(%d+)$') end

local function below(a, b) return #a < #b or (#a == #b and a < b) end

local function increment(digits)
  local head, nines = string.match(digits, '^(.-)(9*)$')
  local carried = head == '' and '1' or string.sub(head, 1, -2) .. string.byte(head, -1) - 47
  return carried .. string.rep('0', #nines)
end

local function decrement(digits)
  local head, zeros = string.match(digits, '^(.-)(0*)$')
  local lowered = string.sub(head, 1, -2) .. string.byte(head, -1) - 49 .. string.rep('9', #zeros)
  return (string.gsub(lowered, '^0+(%d)', '%1'))
end

local function less(a, b)
  local am, as = parts(a)
  local bm, bs = parts(b)
  return below(am, bm) or (am == bm and below(as, bs))
end

local function after(id)
  local ms, seq = parts(id)
  if seq == LAST_SEQUENCE then return increment(ms) .. '-0' end
  return ms .. '-' .. increment(seq)
end

local function before(id)
  local ms, seq = parts(id)
  if seq ~= '0' then return ms .. '-' .. decrement(seq) end
  if ms == '0' then return '0-0' end
  return decrement(ms) .. '-' .. LAST_SEQUENCE
end

local function map(flat)
  local m = {}
  for i = 1, #flat, 2 do m[flat[i]] = flat[i + 1] end
  return m
end

local function type_of(key) return redis.call('TYPE', key).ok end

local function groups_of(key)
  local groups = {}
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local g = map(flat)
    groups[g.name] = g
  end
  return groups
end

local function revision() return REVISION end

redis.register_function{function_name = 'as1_revision', callback = revision, flags = {'no-writes'}}
