-- The records of the consumers that are alive.
local found = {}
local values = call('HGETALL', P .. 'omni-consumers')
for i = 1, #values, 2 do
    if call('EXISTS', lease_of(values[i])) == 1 then found[#found + 1] = values[i + 1] end
end
return found
