"""The verbs of the store as Lua scripts; no I/O. Each runs as one step on the Redis primary.

Times are milliseconds of the server's own clock. What a script writes depends only on its arguments,
the data and ``TIME``. Verdicts come before the first write, the audit event before all other writes: if
Redis refuses to write (memory, disk), nothing has been done.
"""

import hashlib
from typing import Final

GRACE_MS: Final = 600_000
"""A live token is remembered so long past its expiry, for clocks that differ."""

_COMMON: Final = (
    f"local GRACE = {GRACE_MS}\n"
    """
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The id stands twice, so that losing either the state or the keys is noticed.
local function lost(S, K, id)
  return redis.call('HGET', S, 'id') ~= id or redis.call('HGET', K, '!') ~= id
end

local function epoch(S)
  return redis.call('HGET', S, 'epoch') or '0'
end

-- Values of the fields ARGV[first..last] that exist; in parts, because unpack has a limit.
local function values(S, first, last)
  local found = {}
  for at = first, last, 1000 do
    local part = redis.call('HMGET', S, unpack(ARGV, at, math.min(at + 999, last)))
    for i = 1, #part do
      if part[i] then found[#found + 1] = part[i] end
    end
  end
  return found
end

-- The highest epoch among marks; one that cannot be read counts as the highest of all.
local function highest(S, first, last)
  local top = 0
  for _, value in ipairs(values(S, first, last)) do
    top = math.max(top, tonumber(string.match(value, '^(%d+)')) or math.huge)
  end
  return top
end

-- Optional arguments come as a pair: '1' or '0', and the value.
local function differs(value, given, expected)
  return value ~= (given == '1' and expected)
end

local function audit(A, most, at)
  redis.call('XADD', A, 'MAXLEN', '~', most, '*', 'e', ARGV[at], 'k', ARGV[at + 1], 'o', ARGV[at + 2],
    'r', ARGV[at + 3], 'q', ARGV[at + 4], 'b', ARGV[at + 5])
end

-- Only ever lengthens a key's life.
local function keep_until(key, at, t)
  local left = redis.call('PTTL', key)
  if left < 0 or left < at - t then redis.call('PEXPIREAT', key, at) end
end

local function index(key, sha, expires, t)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', t - GRACE)
  redis.call('ZADD', key, expires, sha)
  keep_until(key, expires + GRACE, t)
end

-- Counter of the running minute, as '<minute>:<used>'.
local function take(B, chunk, limit, t)
  local minute = math.floor(t / 60000)
  local window, used = string.match(redis.call('GET', B) or '', '^(%d+):(%d+)$')
  used = tonumber(window) == minute and tonumber(used) or 0
  local granted = math.max(0, math.min(chunk, limit - used))
  if granted > 0 then
    redis.call('SET', B, string.format('%d:%d', minute, used + granted), 'PX', 120000)
  end
  return granted, (minute + 1) * 60000 - t
end
"""
)


class Script:
    """A Lua script and the name under which the server may know it already."""

    __slots__ = ("sha", "text")

    def __init__(self, body: str) -> None:
        self.text = (_COMMON + body).encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


# KEYS: S K, then all others that only a store of ours can hold. ARGV: id, then field, value …
INITIALISE: Final = Script("""
for i = 1, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then return 0 end
end
redis.call('HSET', KEYS[2], '!', ARGV[1])
for i = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  if string.sub(ARGV[i], 1, 3) == 'dk:' then redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
end
return 1
""")

# KEYS: S K. ARGV: id, then field, value …
ADD_WRAPS: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
for i = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
return 1
""")

# KEYS: S K R KT A. ARGV: id, epoch, sha, key id, most events, event.
# Whoever revokes raises the epoch in the step that enumerates KT: a hand-out is before it, or stale.
HAND: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 'lost' end
if epoch(KEYS[1]) ~= ARGV[2] then return 'stale' end
local expires = tonumber(redis.call('HGET', KEYS[3], 'e') or nil)
if not expires then return 'gone' end
local field = 'k:' .. ARGV[4]
if redis.call('HEXISTS', KEYS[3], field) == 1 then return 'again' end
local t = now()
audit(KEYS[5], ARGV[5], 6)
redis.call('HSET', KEYS[3], field, t)
index(KEYS[4], ARGV[3], expires, t)
return 'first'
""")

# KEYS: S K T F L P:app P:o B. ARGV: id, nonce, lease ms, token given, token, budget given, limit, floor …
ACQUIRE: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return {'lost'} end
if differs(redis.call('GET', KEYS[3]), ARGV[4], ARGV[5]) then return {'changed'} end
local paused = math.max(redis.call('PTTL', KEYS[6]), redis.call('PTTL', KEYS[7]))
if paused > 0 then return {'paused', paused} end
local failure = redis.call('GET', KEYS[4])
if failure then
  local since = tonumber(string.match(failure, '^(%d+)'))
  if since and since >= highest(KEYS[1], 8, #ARGV) then return {'failed', failure} end
end
if redis.call('EXISTS', KEYS[5]) == 1 then return {'wait'} end
if ARGV[6] == '1' then
  local granted, left = take(KEYS[8], 1, tonumber(ARGV[7]), now())
  if granted == 0 then return {'budget', left} end
end
redis.call('SET', KEYS[5], ARGV[2], 'PX', ARGV[3])
return {'lead', epoch(KEYS[1])}
""")

# KEYS: S K L. ARGV: id, nonce, lease ms.
LEASE: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return {0, '0'} end
if redis.call('SET', KEYS[3], ARGV[2], 'NX', 'PX', ARGV[3]) then return {1, epoch(KEYS[1])} end
return {0, epoch(KEYS[1])}
""")

# KEYS: L. ARGV: nonce, lease ms.
RENEW: Final = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""")

# KEYS: any string. ARGV: what it must hold.
DROP: Final = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""")

# KEYS: S K T F F:refresh L R RT OT A.
# ARGV: id, nonce, epoch, blob, sha, scope, owner, expiry ms, offset given, offset, most events, event (6),
# number of marks, marks …, blocks …
# A repeated COMMIT whose first reply was lost finds its own blob and is ok. The nonce is the fence.
COMMIT: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 'lost' end
if redis.call('GET', KEYS[3]) == ARGV[4] then return 'ok' end
if redis.call('GET', KEYS[6]) ~= ARGV[2] then return 'fenced' end
local last_mark = 18 + tonumber(ARGV[18])
if highest(KEYS[1], 19, last_mark) > tonumber(ARGV[3]) then return 'revoked' end
for _, block in ipairs(values(KEYS[1], last_mark + 1, #ARGV)) do
  -- b:w:<owner> counts blocks; none left is no block
  if block ~= '0' then return 'blocked' end
end
local t = now()
local expires = tonumber(ARGV[8])
audit(KEYS[10], ARGV[11], 12)
redis.call('SET', KEYS[3], ARGV[4], 'PXAT', expires)
redis.call('HSET', KEYS[7], 't', ARGV[4], 'o', ARGV[7], 's', ARGV[6], 'e', expires)
redis.call('PEXPIREAT', KEYS[7], expires + GRACE)
index(KEYS[8], ARGV[5], expires, t)
index(KEYS[9], ARGV[5], expires, t)
if ARGV[9] == '1' then redis.call('HSET', KEYS[1], 'gh_offset', ARGV[10]) end
redis.call('DEL', KEYS[4], KEYS[5], KEYS[6])
return 'ok'
""")

# KEYS: L F. ARGV: nonce, value, cool-down ms.
FAIL: Final = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[1])
return 1
""")

# KEYS: P. ARGV: ms. Its value is the Unix time at which it ends.
PAUSE: Final = Script("""
local ms = tonumber(ARGV[1])
if redis.call('PTTL', KEYS[1]) < ms then
  redis.call('SET', KEYS[1], string.format('%.3f', (now() + ms) / 1000), 'PX', ms)
end
return 1
""")

# KEYS: B. ARGV: chunk, limit.
TAKE: Final = Script("""
local granted, left = take(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), now())
return {granted, left}
""")

# KEYS: S K A. ARGV: id, most events, events (6 each) …
APPEND: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
for at = 3, #ARGV, 6 do audit(KEYS[3], ARGV[2], at) end
return 1
""")

# KEYS: K U. ARGV: key id, time … A purged key must not leave its last use behind.
TOUCH: Final = Script("""
for i = 1, #ARGV, 2 do
  local at = tonumber(redis.call('HGET', KEYS[2], ARGV[i]) or nil)
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 and (not at or at < tonumber(ARGV[i + 1])) then
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
return 1
""")

# KEYS: S K KI KP A. ARGV: id, key id, old given, old, blob, purge given, purge ms, narrows, most events,
# event. Compares the whole old record: a change that crosses a revocation loses.
WRITE_KEY: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 'lost' end
if differs(redis.call('HGET', KEYS[2], ARGV[2]), ARGV[3], ARGV[4]) then return 'changed' end
audit(KEYS[5], ARGV[9], 10)
redis.call('HSET', KEYS[2], ARGV[2], ARGV[5])
if ARGV[3] == '0' then
  redis.call('ZADD', KEYS[3], redis.call('HINCRBY', KEYS[1], 'seq', 1), ARGV[2])
end
if ARGV[6] == '1' then
  redis.call('ZADD', KEYS[4], ARGV[7], ARGV[2])
else
  redis.call('ZREM', KEYS[4], ARGV[2])
end
if ARGV[8] == '1' then redis.call('HINCRBY', KEYS[1], 'epoch', 1) end
return 'ok'
""")

# KEYS: KI K U. ARGV: sequence to start after, most rows.
LIST_KEYS: Final = Script("""
local rows = {}
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #found, 2 do
  rows[#rows + 1] = {found[i + 1], found[i], redis.call('HGET', KEYS[2], found[i]),
    redis.call('HGET', KEYS[3], found[i])}
end
return rows
""")

# KEYS: S K L N O I. ARGV: id, nonce, epoch, owner, installation id, blob given, blob, life ms,
# old pin given, old pin, pin given, pin, marks …
PUT_OWNER: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 'lost' end
if redis.call('GET', KEYS[3]) ~= ARGV[2] then return 'fenced' end
if highest(KEYS[1], 13, #ARGV) > tonumber(ARGV[3]) then return 'stale' end
if differs(redis.call('HGET', KEYS[4], ARGV[4]), ARGV[9], ARGV[10]) then return 'changed' end
if ARGV[11] == '1' then redis.call('HSET', KEYS[4], ARGV[4], ARGV[12]) end
if ARGV[6] == '1' then
  redis.call('SET', KEYS[5], ARGV[7], 'PX', ARGV[8])
  redis.call('HSET', KEYS[6], ARGV[5], ARGV[4])
else
  redis.call('DEL', KEYS[5])
  if redis.call('HGET', KEYS[6], ARGV[5]) == ARGV[4] then redis.call('HDEL', KEYS[6], ARGV[5]) end
end
return 'ok'
""")

# KEYS: KP K U KI RT A. ARGV: most keys, retention ms, most events. Returns how many keys went.
SWEEP: Final = Script("""
local t = now()
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', t, 'LIMIT', 0, ARGV[1])
if #due > 0 then
  redis.call('HDEL', KEYS[2], unpack(due))
  redis.call('HDEL', KEYS[3], unpack(due))
  redis.call('ZREM', KEYS[4], unpack(due))
  redis.call('ZREM', KEYS[1], unpack(due))
end
redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', t - GRACE)
redis.call('XTRIM', KEYS[6], 'MINID', math.max(0, t - tonumber(ARGV[2])))
redis.call('XTRIM', KEYS[6], 'MAXLEN', ARGV[3])
return #due
""")

# KEYS: I, then O of each owner. ARGV: installation id, owner … An index entry lives as long as its owner.
SWEEP_INSTALLATIONS: Final = Script("""
for i = 2, #KEYS do
  local id, owner = ARGV[2 * i - 3], ARGV[2 * i - 2]
  if redis.call('EXISTS', KEYS[i]) == 0 and redis.call('HGET', KEYS[1], id) == owner then
    redis.call('HDEL', KEYS[1], id)
  end
end
return 1
""")
