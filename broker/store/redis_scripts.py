"""The verbs of the store as Lua scripts; no I/O. Each runs as one step on the Redis primary.

Times are milliseconds of the server's own clock. What a script writes depends only on its arguments,
the data and ``TIME``. Verdicts come before the first write, the audit event before all other writes: if
Redis refuses to write (memory, disk), nothing has been done.
"""

import hashlib
from typing import Final

from broker.store.backend import END_SLACK_S

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

local function mark(S, field, raised, t)
  redis.call('HSET', S, field, string.format('%d:%d', raised, math.floor(t / 1000)))
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


# The outbox: X notes by '<sha>|<only>', XE those names by the token's expiry, XS by name.
_ENDING: Final = (
    f"local SLACK = {int(END_SLACK_S * 1000)}\n"
    """
-- Which live tokens an index holds: hashes, and when they expire.
local function living(key, t)
  local shas, expiries = {}, {}
  local found = redis.call('ZRANGEBYSCORE', key, t - SLACK, '+inf', 'WITHSCORES')
  for i = 1, #found, 2 do
    shas[#shas + 1] = found[i]
    expiries[#expiries + 1] = found[i + 1]
  end
  return shas, expiries
end

-- Reads what the end of one token touches; nil if it is not alive. Nothing is written while others are
-- still to be read: on a slot that moves, reading may fail.
local function doomed(tag, sha, t)
  local R = tag .. 'R:' .. sha
  local found = redis.call('HMGET', R, 't', 's', 'e', 'x')
  if not found[1] or found[4] == 'revoked' or tonumber(found[3]) < t - SLACK then return nil end
  local T = tag .. 'T:' .. found[2]
  return {sha = sha, R = R, expires = found[3], T = redis.call('GET', T) == found[1] and T}
end

-- HAND calls the token gone, and it leaves the cache (a newer one of the same scope stays).
local function stop(token)
  redis.call('HSET', token.R, 'x', 'ended')
  if token.T then redis.call('DEL', token.T) end
end

-- In parts, because unpack has a limit.
local function enqueue(X, XE, XS, shas, expiries, only, note)
  for first = 1, #shas, 1000 do
    local notes, by_expiry, by_name = {}, {}, {}
    for i = first, math.min(first + 999, #shas) do
      local name = shas[i] .. '|' .. only
      local at = 2 * (i - first)
      notes[at + 1], notes[at + 2] = name, note
      by_expiry[at + 1], by_expiry[at + 2] = expiries[i], name
      by_name[at + 1], by_name[at + 2] = 0, name
    end
    redis.call('HSET', X, unpack(notes))
    redis.call('ZADD', XE, unpack(by_expiry))
    redis.call('ZADD', XS, unpack(by_name))
  end
end
"""
)

# Owners: I installation id -> owner; OI '<owner> <installation id>' in the order of the owners, which a
# space, below every character of a name, does not disturb.
_OWNERS: Final = """
local function members(OI, owner)
  return redis.call('ZRANGEBYLEX', OI, '[' .. owner .. ' ', '(' .. owner .. '!')
end

local function forget(I, OI, owner)
  for _, member in ipairs(members(OI, owner)) do
    local id = string.sub(member, #owner + 2)
    if redis.call('HGET', I, id) == owner then redis.call('HDEL', I, id) end
    redis.call('ZREM', OI, member)
  end
end
"""


class Script:
    """A Lua script and the name under which the server may know it already."""

    __slots__ = ("sha", "text")

    def __init__(self, *parts: str) -> None:
        self.text = (_COMMON + "".join(parts)).encode()
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

# KEYS: S K KI. ARGV: found id given, found id, found ! given, found !, id, then field, value …
MEND: Final = Script("""
if differs(redis.call('HGET', KEYS[1], 'id'), ARGV[1], ARGV[2]) then return 0 end
if differs(redis.call('HGET', KEYS[2], '!'), ARGV[3], ARGV[4]) then return 0 end
local last = redis.call('ZREVRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
redis.call('HSET', KEYS[1], 'id', ARGV[5])
redis.call('HSET', KEYS[2], '!', ARGV[5])
for i = 6, #ARGV, 2 do
  local name, value = ARGV[i], ARGV[i + 1]
  if string.sub(name, 1, 3) == 'dk:' then
    redis.call('HSETNX', KEYS[1], name, value)
    redis.call('HSETNX', KEYS[2], name, value)
  elseif name ~= 'epoch' or (tonumber(epoch(KEYS[1])) or 0) < tonumber(value) then
    redis.call('HSET', KEYS[1], name, value)
  end
end
if last then redis.call('HSETNX', KEYS[1], 'seq', last) end
return 1
""")

# KEYS: S K, then the hash. ARGV: id, field, old, new.
RESEAL_FIELD: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
if redis.call('HGET', KEYS[3], ARGV[2]) ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[3], ARGV[2], ARGV[4])
return 1
""")

# KEYS: S K, then the string. ARGV: id, old, new.
RESEAL_STRING: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
if redis.call('GET', KEYS[3]) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[3], ARGV[3], 'KEEPTTL')
return 1
""")

# KEYS: S K R T. ARGV: id, old, new.
RESEAL_TOKEN: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
if redis.call('HGET', KEYS[3], 't') ~= ARGV[2] then return 0 end
local cached = redis.call('GET', KEYS[4]) == ARGV[2]
redis.call('HSET', KEYS[3], 't', ARGV[3])
if cached then redis.call('SET', KEYS[4], ARGV[3], 'KEEPTTL') end
return 1
""")

# KEYS: S K WQ. ARGV: id, place, old, new. An entry of a stream cannot change: a new one takes its part.
RESEAL_HOOK: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
local found = redis.call('XRANGE', KEYS[3], ARGV[2], ARGV[2])[1]
if not found or found[2][2] ~= ARGV[3] then return 0 end
redis.call('XADD', KEYS[3], '*', 'b', ARGV[4])
return redis.call('XDEL', KEYS[3], ARGV[2])
""")

# KEYS: R of each.
TOKENS: Final = Script("""
local rows = {}
for i = 1, #KEYS do
  local found = redis.call('HMGET', KEYS[i], 't', 's')
  rows[i] = {found[1] or '', found[2] or ''}
end
return rows
""")

DROP_WRAPS: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
for i = 2, #ARGV do
  redis.call('HDEL', KEYS[1], ARGV[i])
  redis.call('HDEL', KEYS[2], ARGV[i])
end
return 1
""")

# KEYS: S K R KT A. ARGV: id, epoch, sha, key id, most events, event.
# Whoever revokes raises the epoch in the step that enumerates KT: a hand-out is before it, or stale.
HAND: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 'lost' end
if epoch(KEYS[1]) ~= ARGV[2] then return 'stale' end
local found = redis.call('HMGET', KEYS[3], 'e', 'x')
local expires = tonumber(found[1] or nil)
if not expires or found[2] then return 'gone' end
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

# KEYS: S K KI KP A KT X XE XS. ARGV: id, key id, old given, old, blob, purge given, purge ms, most
# events, event (6), kill, note, marks … Compares the whole old record: a change that crosses a
# revocation loses.
WRITE_KEY: Final = Script(
    _ENDING,
    """
if lost(KEYS[1], KEYS[2], ARGV[1]) then return {'lost'} end
if differs(redis.call('HGET', KEYS[2], ARGV[2]), ARGV[3], ARGV[4]) then return {'changed'} end
local tokens, shas, expiries, t = {}, {}, {}, now()
if ARGV[15] == '1' then
  local tag = string.sub(KEYS[1], 1, -2)
  for _, sha in ipairs((living(KEYS[6], t))) do
    local token = doomed(tag, sha, t)
    if token then
      tokens[#tokens + 1], shas[#shas + 1], expiries[#expiries + 1] = token, sha, token.expires
    end
  end
end
audit(KEYS[5], ARGV[8], 9)
redis.call('HSET', KEYS[2], ARGV[2], ARGV[5])
if ARGV[3] == '0' then
  redis.call('ZADD', KEYS[3], redis.call('HINCRBY', KEYS[1], 'seq', 1), ARGV[2])
end
if ARGV[6] == '1' then
  redis.call('ZADD', KEYS[4], ARGV[7], ARGV[2])
else
  redis.call('ZREM', KEYS[4], ARGV[2])
end
-- A hand-out that is on its way must not miss the list: it has to get 'stale'.
local raised = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
for at = 17, #ARGV do mark(KEYS[1], ARGV[at], raised, t) end
for _, token in ipairs(tokens) do stop(token) end
enqueue(KEYS[7], KEYS[8], KEYS[9], shas, expiries, '', ARGV[16])
return {'ok', raised, shas}
""",
)

# KEYS: S K A X XE XS, then RT or OT (kind 'index') or R of one token (kind 'token').
# ARGV: id, field that must exist, field that counts, kind, sha, only, note, most events, event given,
# event (6), number of marks, marks …, then field, given, value of each block.
# Marks, blocks, audit and list of those to kill are one step: from here on the promise holds.
END: Final = Script(
    _ENDING,
    """
if lost(KEYS[1], KEYS[2], ARGV[1]) then return {'lost'} end
if ARGV[2] ~= '' and redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then return {'absent'} end
if not tonumber(epoch(KEYS[1])) then return redis.error_reply('ERR epoch is not a number') end
local wide = ARGV[3]
local last_mark = 16 + tonumber(ARGV[16])
local blocked = tonumber(redis.call('HGET', KEYS[1], wide) or '0')
if not blocked then return redis.error_reply('ERR the number of blocks is not a number') end
local counted = 'b:r:' .. string.sub(wide, 5) .. '/'
for at = last_mark + 1, #ARGV, 3 do
  if wide ~= '' and string.sub(ARGV[at], 1, #counted) == counted then
    blocked = blocked + tonumber(ARGV[at + 1]) - redis.call('HEXISTS', KEYS[1], ARGV[at])
  end
end
local t = now()
local shas, expiries, token = {}, {}, nil
if ARGV[4] == 'index' then
  shas, expiries = living(KEYS[7], t)
elseif ARGV[4] == 'token' then
  token = doomed(string.sub(KEYS[1], 1, -2), ARGV[5], t)
  if token then shas, expiries = {token.sha}, {token.expires} end
end
if ARGV[9] == '1' then audit(KEYS[3], ARGV[8], 10) end
local raised = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
for at = 17, last_mark do mark(KEYS[1], ARGV[at], raised, t) end
for at = last_mark + 1, #ARGV, 3 do
  if ARGV[at + 1] == '1' then
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 2])
  else
    redis.call('HDEL', KEYS[1], ARGV[at])
  end
end
if wide ~= '' then
  if blocked > 0 then
    redis.call('HSET', KEYS[1], wide, blocked)
  else
    redis.call('HDEL', KEYS[1], wide)
  end
end
if token then stop(token) end
enqueue(KEYS[4], KEYS[5], KEYS[6], shas, expiries, ARGV[6], ARGV[7])
return {'ok', raised, shas}
""",
)

# KEYS: X XE XS. ARGV: tag, most entries, '1' if only those of some tokens, sha …
OUTBOX: Final = Script("""
local names = {}
if ARGV[3] == '1' then
  local expiry = {}
  for at = 4, #ARGV do
    local sha = ARGV[at]
    for _, name in ipairs(redis.call('ZRANGEBYLEX', KEYS[3], '[' .. sha .. '|', '(' .. sha .. '}')) do
      if not expiry[name] then
        expiry[name] = tonumber(redis.call('ZSCORE', KEYS[2], name) or '0')
        names[#names + 1] = name
      end
    end
  end
  table.sort(names, function(a, b)
    if expiry[a] == expiry[b] then return a < b end
    return expiry[a] < expiry[b]
  end)
else
  names = redis.call('ZRANGE', KEYS[2], 0, ARGV[2] - 1)
end
local rows = {}
for i = 1, math.min(#names, tonumber(ARGV[2])) do
  local sha = string.match(names[i], '^[^|]*')
  local found = redis.call('HMGET', ARGV[1] .. 'R:' .. sha, 't', 'o', 's')
  rows[i] = {names[i], redis.call('HGET', KEYS[1], names[i]) or '', found[1], found[2] or '',
    found[3] or '', redis.call('ZSCORE', KEYS[2], names[i]) or '0'}
end
return rows
""")

# KEYS: S K A X XE XS RT, then R of each entry. ARGV: id, most events, then sha, only, revoked, event (6) of
# each. An entry that two settle at once is counted, and written down, once.
SETTLE: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
local tag = string.sub(KEYS[1], 1, -2)
local names, settled, revoked = {}, {}, {}
for at = 3, #ARGV, 9 do
  local name = ARGV[at] .. '|' .. ARGV[at + 1]
  if not settled[name] and redis.call('HEXISTS', KEYS[4], name) == 1 then
    settled[name] = at
    names[#names + 1] = name
    if ARGV[at + 2] == '1' then
      local R = KEYS[8 + (at - 3) / 9]
      local owner = redis.call('HGET', R, 'o')
      if owner then revoked[#revoked + 1] = {R = R, sha = ARGV[at], OT = tag .. 'OT:' .. owner} end
    end
  end
end
for _, name in ipairs(names) do
  local at = settled[name]
  if ARGV[at + 2] == '1' then audit(KEYS[3], ARGV[2], at + 3) end
end
for _, name in ipairs(names) do
  redis.call('HDEL', KEYS[4], name)
  redis.call('ZREM', KEYS[5], name)
  redis.call('ZREM', KEYS[6], name)
end
for _, token in ipairs(revoked) do
  redis.call('HSET', token.R, 'x', 'revoked')
  redis.call('ZREM', KEYS[7], token.sha)
  redis.call('ZREM', token.OT, token.sha)
end
return #names
""")

# KEYS: S K W WD WQ. ARGV: id, life ms, blob. What was not queued is not remembered.
HOOK: Final = Script("""
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 'lost' end
if redis.call('EXISTS', KEYS[3], KEYS[4]) > 0 then return 'seen' end
redis.call('XADD', KEYS[5], '*', 'b', ARGV[3])
redis.call('SET', KEYS[3], '1', 'PX', ARGV[2])
redis.call('SET', KEYS[4], '1', 'PX', ARGV[2])
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

# KEYS: S K L N O I OI. ARGV: id, nonce, epoch, owner, installation id, blob given, blob, life ms,
# old pin given, old pin, pin given, pin, marks …
PUT_OWNER: Final = Script(
    _OWNERS,
    """
if lost(KEYS[1], KEYS[2], ARGV[1]) then return 'lost' end
if redis.call('GET', KEYS[3]) ~= ARGV[2] then return 'fenced' end
if highest(KEYS[1], 13, #ARGV) > tonumber(ARGV[3]) then return 'stale' end
if differs(redis.call('HGET', KEYS[4], ARGV[4]), ARGV[9], ARGV[10]) then return 'changed' end
if ARGV[11] == '1' then redis.call('HSET', KEYS[4], ARGV[4], ARGV[12]) end
forget(KEYS[6], KEYS[7], ARGV[4])
if ARGV[6] == '1' then
  redis.call('SET', KEYS[5], ARGV[7], 'PX', ARGV[8])
  redis.call('HSET', KEYS[6], ARGV[5], ARGV[4])
  redis.call('ZADD', KEYS[7], 0, ARGV[4] .. ' ' .. ARGV[5])
else
  redis.call('DEL', KEYS[5])
  if redis.call('HGET', KEYS[6], ARGV[5]) == ARGV[4] then redis.call('HDEL', KEYS[6], ARGV[5]) end
end
return 'ok'
""",
)

# KEYS: S K N O I OI A. ARGV: id, owner, old pin, pin, most events, event (6), marks …
ACCEPT: Final = Script(
    _OWNERS,
    """
if lost(KEYS[1], KEYS[2], ARGV[1]) then return {'lost'} end
if redis.call('HGET', KEYS[3], ARGV[2]) ~= ARGV[3] then return {'changed'} end
if not tonumber(epoch(KEYS[1])) then return redis.error_reply('ERR epoch is not a number') end
audit(KEYS[7], ARGV[5], 6)
local raised = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
local t = now()
mark(KEYS[1], 'm:o:' .. ARGV[2], raised, t)
for at = 12, #ARGV do mark(KEYS[1], ARGV[at], raised, t) end
redis.call('HSET', KEYS[3], ARGV[2], ARGV[4])
redis.call('DEL', KEYS[4])
forget(KEYS[5], KEYS[6], ARGV[2])
return {'ok', raised}
""",
)

# KEYS: I. ARGV: tag, installation id. An owner that expired has no installation.
OWNER_OF: Final = Script("""
local owner = redis.call('HGET', KEYS[1], ARGV[2])
return owner and redis.call('EXISTS', ARGV[1] .. 'O:' .. owner) == 1 and owner
""")

# KEYS: OI. ARGV: tag, owner to start after, most rows. Passes over owners that expired.
LIST_OWNERS: Final = Script("""
local rows, most, t = {}, tonumber(ARGV[3]), now()
local from = ARGV[2] == '' and '-' or '(' .. ARGV[2] .. '!'
while #rows < most do
  local found = redis.call('ZRANGEBYLEX', KEYS[1], from, '+', 'LIMIT', 0, most)
  for _, member in ipairs(found) do
    local owner = string.match(member, '^[^ ]*')
    local blob = redis.call('GET', ARGV[1] .. 'O:' .. owner)
    if blob and #rows < most then
      rows[#rows + 1] = {owner, blob, redis.call('ZCOUNT', ARGV[1] .. 'OT:' .. owner, '(' .. t, '+inf')}
    end
    from = '(' .. owner .. '!'
  end
  if #found < most then break end
end
return rows
""")

# KEYS: RT XE WQ. Tokens that died at GitHub have left RT.
COUNTS: Final = Script("""
return {redis.call('ZCOUNT', KEYS[1], '(' .. now(), '+inf'), redis.call('ZCARD', KEYS[2]),
  redis.call('XLEN', KEYS[3])}
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

# KEYS: I OI, then O of each owner. ARGV: installation id, owner … An index entry lives as long as its owner.
SWEEP_INSTALLATIONS: Final = Script(
    _OWNERS,
    """
for i = 3, #KEYS do
  local id, owner = ARGV[2 * i - 5], ARGV[2 * i - 4]
  if redis.call('EXISTS', KEYS[i]) == 0 then
    forget(KEYS[1], KEYS[2], owner)
    if redis.call('HGET', KEYS[1], id) == owner then redis.call('HDEL', KEYS[1], id) end
  elseif #members(KEYS[2], owner) == 0 then
    -- written by a broker that did not keep OI yet
    redis.call('ZADD', KEYS[2], 0, owner .. ' ' .. id)
  end
end
return 1
""",
)

# KEYS: S. ARGV: life in s, then mark, value … A mark that was set again meanwhile stays.
SWEEP_MARKS: Final = Script("""
local oldest = now() / 1000 - tonumber(ARGV[1])
for at = 2, #ARGV, 2 do
  local set_at = tonumber(string.match(ARGV[at + 1], '^%d+:(%d+)$') or nil)
  if set_at and set_at < oldest and redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1] then
    redis.call('HDEL', KEYS[1], ARGV[at])
  end
end
return 1
""")

# KEYS: X XE XS, then R of each. ARGV: name of an entry … Nothing can be done for a token that is forgotten.
SWEEP_OUTBOX: Final = Script("""
for i, name in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[i + 3]) == 0 then
    redis.call('HDEL', KEYS[1], name)
    redis.call('ZREM', KEYS[2], name)
    redis.call('ZREM', KEYS[3], name)
  end
end
return 1
""")
