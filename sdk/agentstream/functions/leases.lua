-- Leases: when that of a pending entry has run out, and which entries are nobody's.
--
-- The server tells by its clock how long ago an entry was renewed. That proves nothing while nobody can renew: while the
-- server is away or cut off, and when its clock leaps. So each group notes when it heard one of its consumers last; see
-- docs/adr/0019-claims-wait-after-a-silence.md.

-- Delivered at this time, in ms since 1970, seems what is nobody's, as it was handed back or freed. What a holder let lapse
-- never does, however long ago.
local NOBODYS = 0

-- How long, in ms, a silence is at least, and the time between two calls of a consumer at most. Who holds an entry renews it
-- three times in a lease. Of leases below 1.4 s the machinery keeps less.
local function shortest_silence(lease) return math.max(0.45 * lease, 650) end
local function longest_wait(lease) return math.max(math.ceil(0.36 * lease), 500) end

-- So many silences count as one that follow on each other too soon for who lives to have renewed in between. Not more: else
-- they would add up for ever where everybody is slow, and no lease run out.
local TOGETHER = 4

-- The idle time, in ms, that only what is nobody's has reached.
local function nobodys_idle(now) return now - DAY end

-- For how long, in ms, nobody of a group was heard, as far as leases must allow for that now; when that ended; and when
-- somebody was heard last, nil if never; and how many silences these are. Who lives renews within half a lease after it. A tenth of a lease counts all the
-- same, so that leases run out where everybody is slow.
local function silence(stats, lease, now)
  local known = redis.call('HGET', stats, 'sweep:heard') or ''
  local heard, silent, ended, silences = string.match(known, '^(%d+) (%d+) (%d+) (%d+)$')
  heard, silent, ended, silences = tonumber(heard), tonumber(silent) or 0, tonumber(ended) or 0, tonumber(silences) or 0
  -- one that ends later than now did so before the clock was set back
  if ended > now or now - ended >= lease / 2 then silent, silences = 0, 0 end
  local gap = now - (heard or now)
  if gap <= shortest_silence(lease) then return silent, ended, heard, silences end
  if silences >= TOGETHER then silent, silences = 0, 0 end
  return silent + gap - lease / 10, now, heard, silences + 1
end

-- The idle time, in ms, from which on an entry may be claimed, if nobody was heard for as long as `silent`.
local function claimable_idle(lease, silent, now) return math.min(math.ceil(lease + silent), nobodys_idle(now)) end

-- By so many ms, the clock may be behind the last time that was noted.
local SET_BACK = 1000

-- Notes that a consumer of the group is heard. Returns for how long nobody was, and when that ended, as `silence` does.
local function hear(stats, lease, now)
  local silent, ended, heard, silences = silence(stats, lease, now)
  local was_set_back = heard and heard > now + SET_BACK
  if was_set_back then
    -- see `set_leases_back` and `mend`
    redis.call('HSET', stats, 'sweep:ahead', '0-0', 'sweep:retries-ahead', '0-0', 'sweep:mend', '0')
  end
  -- not with each call of many consumers: who noted it last comes back in time
  if was_set_back or math.abs(now - (heard or 0)) >= lease / 16 then
    redis.call('HSET', stats, 'sweep:heard', string.format('%.0f %.0f %.0f %.0f', now, silent, ended, silences))
  end
  return silent, ended
end
