-- Pause an agent, or end its pause. {agent, 1 to pause}
local agent, is_paused = unpack(arguments)
open_for_writing()
call(is_paused == 1 and 'SADD' or 'SREM', P .. 'omni-paused', agent)
for _, group in ipairs(call('SMEMBERS', P .. 'omni-groups')) do
    if group:sub(-#agent - 1) == ':' .. agent then ring(topic_of(group)) end
end
return 1
