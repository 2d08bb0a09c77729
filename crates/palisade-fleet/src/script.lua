-- Charges accounts with what a node has admitted, and grants what it asks for.
--
-- ARGV[1] is the time in microseconds, or '' for that of this server. ARGV[2] is the node, or '' if
-- nodes are not counted. Then there are six numbers for each account: the microseconds for one
-- cell, the burst, the cells that were admitted, the cells asked for, the fewest of them that are of
-- use, and the longest debt in microseconds. KEYS are the accounts, and the set of nodes if they are
-- counted.
--
-- The answer has two numbers for each account: the cells granted, or -1 if its key cannot be used,
-- and the microseconds until the fewest cells are free, or 0. Then the number of nodes, or 0.
--
-- The value of a key is the time in microseconds at which its debt is paid. Lua has doubles, which
-- hold these times exactly.
--
-- An error other than that of one key is one of the server: it is out of memory, a replica, or does
-- not allow a command. It fails the call, and says whether an account was charged before.
local is_charged = false
local function failed(answer)
  return {err = (is_charged and 'CHARGED ' or 'UNCHARGED ') .. answer['err']}
end
local now = tonumber(ARGV[1])
if not now then
  local time = redis.pcall('TIME')
  if time['err'] then return failed(time) end
  now = time[1] * 1000000 + time[2]
end
local answers = {}
local accounts = (#ARGV - 2) / 6
for i = 1, accounts do
  local key, at = KEYS[i], 6 * i - 4
  local period, burst = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local admitted, asked = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local fewest, longest = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local granted, wait = -1, 0
  -- A failure of one key must not lose the answers of those before it.
  local stored = redis.pcall('GET', key)
  if type(stored) == 'table' then
    if not string.find(stored['err'], 'WRONGTYPE', 1, true) then return failed(stored) end
  else
    local paid = math.max(stored and tonumber(stored) or 0, now) + admitted * period
    -- Also if the clock was set back, or if the value is no number.
    if not (paid <= now + longest) then paid = now + longest end
    local room = math.floor((now + burst * period - paid) / period)
    granted = room < fewest and 0 or math.min(asked, room)
    paid = paid + granted * period
    wait = math.max(0, paid + fewest * period - now - burst * period)
    if paid > now then
      local millis = string.format('%.0f', math.ceil((paid - now) / 1000))
      local set = redis.pcall('SET', key, string.format('%.0f', paid), 'PX', millis)
      if set['err'] then return failed(set) end
      is_charged = true
    end
  end
  answers[2 * i - 1], answers[2 * i] = granted, wait
end
local nodes = 0
if ARGV[2] ~= '' then
  local set, millis = KEYS[accounts + 1], string.format('%.0f', math.floor(now / 1000))
  redis.pcall('ZADD', set, millis, ARGV[2])
  redis.pcall('ZREMRANGEBYSCORE', set, '-inf', '(' .. string.format('%.0f', millis - 3000))
  redis.pcall('PEXPIRE', set, '5000')
  local count = redis.pcall('ZCARD', set)
  nodes = type(count) == 'number' and count or 0
end
answers[2 * accounts + 1] = nodes
return answers
