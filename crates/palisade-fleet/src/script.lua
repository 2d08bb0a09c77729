-- Charges accounts with what nodes have admitted, and grants what they ask for.
--
-- KEYS are the accounts. ARGV has six numbers for each: the microseconds for one cell, the burst,
-- the cells that were admitted, the cells asked for, the fewest of them that are of use, and the
-- longest debt in microseconds. The answer has two numbers for each: the cells granted, or -1 if
-- the key cannot be used, and the microseconds until the fewest cells are free, or 0.
--
-- The value of a key is the time in microseconds at which its debt is paid. Lua has doubles, which
-- hold these times exactly.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answers = {}
for i, key in ipairs(KEYS) do
  local at = 6 * (i - 1)
  local period, burst = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local admitted, asked = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local fewest, longest = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local granted, wait = -1, 0
  -- A failure of one key must not lose the answers of those before it.
  local stored = redis.pcall('GET', key)
  if type(stored) ~= 'table' then
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
      if set['err'] then granted, wait = -1, 0 end
    end
  end
  answers[2 * i - 1], answers[2 * i] = granted, wait
end
return answers
