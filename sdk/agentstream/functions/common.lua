#!lua name=agentstream1
-- Functions that agents and the operator call, each of which the server carries out atomically.
--
-- `1` in the names of the library and its functions is the number of this interface: within it, changes are backward
-- compatible and raise REVISION; an incompatible change is a new library beside this one.
-- A function runs with the rights of its caller. The declared key is the stream; keys derived from it are arguments, so
-- that each is checked by its own ACL selector (docs/adr/0007-one-selector-per-kind-of-key.md). protocol/commands.py
-- builds the calls: a test compares its arguments with the contracts here.
-- Error replies are constant text. Times are milliseconds of the server's clock. Arguments are hostile: each is checked
-- before anything is changed.
--
-- library.py joins the files of this directory into one text. Each registers its own functions: registration sees no
-- globals but `redis`. Consumers must be able to drain a server that is out of memory: what they settle, move, renew and
-- claim with is `allow-oom`, and adds no more than what it moves and a few KiB.
local REVISION = 10

-- Codes for an entry that was to be settled or renewed: it was; it is not pending; another delivery has it; it was trimmed.
local DONE, GONE, TAKEN, TRIMMED = 1, 0, -1, -2
local DAY = 86400000
-- The most entries that one call reads, claims, moves or removes: other clients wait meanwhile. Who wants more calls again.
local PAGE = 500
-- The most bytes of entries that one call reads, but for the last entry: a MiB takes about a ms.
local BYTES = 1048576
-- The most bytes of an entry that is handed to a consumer: more than any stream allows a message. Of a larger one it gets the
-- size only, as its memory is smaller than the server's.
local LARGEST = 17 * 1048576
-- The most entries that are read at a time, as the next ones may be larger than those before.
local CHUNK = 16
local LAST_SEQUENCE = '18446744073709551615'
local LONGEST_ID = 41

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function ms_of(id) return tonumber(string.match(id, '^(%d+)')) end

-- Ids are compared and counted as digits: each of their two parts has 64 bits, a number in Lua only 53.
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

local function is_part(digits) return not below(LAST_SEQUENCE, digits) and (digits == '0' or string.byte(digits) ~= 48) end

-- Whether a text that an agent may have written is an id, as the server writes it: it then takes it, too.
local function is_id(text)
  if type(text) ~= 'string' or #text > LONGEST_ID then return false end
  local ms, seq = parts(text)
  return ms ~= nil and is_part(ms) and is_part(seq)
end

-- A number that an agent may have written, if it is a whole one that is kept exactly; else nil. Text has digits only: the
-- server, and who measures, read ` 7 ` as no number.
local function whole(text)
  if type(text) == 'string' and string.find(text, '%D') then return nil end
  local number = tonumber(text)
  return number and number >= 0 and number < 1e15 and math.floor(number) == number and number or nil
end

local function less(a, b)
  local am, as = parts(a)
  local bm, bs = parts(b)
  return below(am, bm) or (am == bm and below(as, bs))
end

-- An id as text that sorts as the id does.
local function sortable(id)
  local ms, seq = parts(id)
  return string.rep('0', 20 - #ms) .. ms .. string.rep('0', 20 - #seq) .. seq
end

-- The id after this one; nil if it is the last of all.
local function after(id)
  local ms, seq = parts(id)
  if seq == LAST_SEQUENCE and ms == LAST_SEQUENCE then return nil end
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

-- What one call may still read or move: so many bytes of entries. `largest` is the largest of them so far.
local function allowance() return {bytes = BYTES, largest = 0} end

local function spend(left, size)
  left.bytes, left.largest = left.bytes - size, math.max(left.largest, size)
end

local function size_of(fields)
  local size = 0
  for _, part in ipairs(fields) do size = size + #part end
  return size
end

-- How many of `wanted` entries may be read at a time: one, until it is known how large they are.
local function next_few(left, wanted)
  if left.largest == 0 then return 1 end
  return math.max(1, math.min(wanted, CHUNK, math.floor(left.bytes / left.largest)))
end

-- The most, in ms, that an argument may be: a hundred years. The most a counter may: what a number in Lua counts to.
local LONGEST, MOST = 3200000000000, 9007199254740991
-- The most bytes of a name, and of a reason, an error or a token.
local LONGEST_NAME, LONGEST_TEXT = 1024, 4096

-- Ends the call with an error reply.
local function refuse(text) error(text, 0) end

-- What counters and delays mostly are.
local SMALL = {['0'] = 0, ['1'] = 1, ['2'] = 2, ['3'] = 3, ['4'] = 4, ['5'] = 5}

-- The whole number that an argument is. `tonumber` alone would take `nan`, `1e18`, `0x10` and ` 1`, too.
local function number_in(text, least, most)
  local n = SMALL[text] or text and #text <= 16 and not string.find(text, '%D') and tonumber(text)
  if not n or n < least or n > most then refuse('ERR an argument must be a whole number in its bounds') end
  return n
end

local function flag(text)
  if text ~= '0' and text ~= '1' then refuse('ERR an argument must be 0 or 1') end
  return text == '1'
end

-- Refuses arguments that are not `least` to `most` times `size` from `first` on.
local function count_of(args, first, size, least, most)
  local n = (#args - first + 1) / size
  if n % 1 ~= 0 or n < least or n > most then refuse('ERR wrong number of arguments for the function') end
  return n
end

local function check_length(text, most)
  if #text > most then refuse('ERR an argument is too long') end
end

local function check_id(text)
  -- parts of fewer than 20 digits have 64 bits
  if #text <= 21 and string.find(text, '^[1-9]%d*%-%d+$') or is_id(text) then return end
  refuse('ERR an argument must be the id of an entry')
end

local function revision() return REVISION end

-- Registers a function. What it raises is replied with as constant text: the server would add where in the library it was
-- raised, and what Lua says about it.
local function register(name, callback, flags)
  redis.register_function{function_name = name, flags = flags, callback = function(keys, args)
    if #keys == 0 and callback ~= revision then return {err = 'ERR the function needs the key of a stream'} end
    local fine, reply = pcall(callback, keys, args)
    if fine then return reply end
    -- the server makes texts of its error replies, which begin with a code
    if string.find(reply, '^%u+ ') then return {err = reply} end
    redis.log(redis.LOG_VERBOSE, name .. ': ' .. reply)
    return {err = 'ERR the function cannot read an argument, or what a key holds'}
  end}
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

register('as1_revision', revision, {'no-writes'})
