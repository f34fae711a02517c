-- Have the consumers in which an agent gave up try it again. {agent}; answers how many there are.
local agent, count = arguments[1], 0
local values = call('HGETALL', P .. 'omni-consumers')
for i = 1, #values, 2 do
    local consumer, is_readable, record_ = values[i], pcall(cjson.decode, values[i + 1])
    local gave_up = is_readable and type(record_) == 'table' and record_['gave_up']
    if type(gave_up) == 'table' and gave_up[agent] and call('EXISTS', lease_of(consumer)) == 1 then
        call('SADD', wanted_of(consumer), agent)
        call('PEXPIRE', wanted_of(consumer), 3600000)
        count = count + 1
    end
end
return count
