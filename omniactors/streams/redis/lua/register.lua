-- Register agents. {agents}, an agent is {field, record, time of registration}; the first time stays.
open_for_writing()
for _, agent in ipairs(arguments[1]) do
    local since = P .. 'omni-agents-since'
    call('HSETNX', since, agent[1], agent[3])
    call('HSET', P .. 'omni-agents', agent[1], agent[2])
end
return 1
