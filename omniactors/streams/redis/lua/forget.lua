-- Forget groups, and what only they needed. {groups}, a group is {topic, agent}
local topics, kept = {}, {}
open_for_writing()
for _, pair in ipairs(arguments[1]) do
    local topic, agent = pair[1], pair[2]
    local group, field = group_of(topic, agent), agent .. ':' .. topic
    try('XGROUP', 'DESTROY', stream_of(topic), group)
    call('DEL', waiting_of(group), tries_of(group), order_of(group), hold_of(group), P .. 'omni-counts:' .. group)
    for _, consumer in ipairs(call('HKEYS', P .. 'omni-consumers')) do call('DEL', inbox_of(group, consumer)) end
    call('SREM', P .. 'omni-clipped', group)
    -- Its dead letters are found by this. A stream out of which all were purged is still there.
    if call('XLEN', P .. 'omni-dlq:' .. group) == 0 then
        call('DEL', P .. 'omni-dlq:' .. group)
        call('SREM', P .. 'omni-groups', group)
    end
    call('HDEL', P .. 'omni-agents', field)
    call('HDEL', P .. 'omni-agents-since', field)
    call('HDEL', P .. 'omni-served', group)
    if not topics[topic] then trim(topic) end
    topics[topic] = true
end
for _, group in ipairs(call('SMEMBERS', P .. 'omni-groups')) do kept[group:match('[^:]*$')] = true end
for _, pair in ipairs(arguments[1]) do
    if not kept[pair[2]] then call('SREM', P .. 'omni-paused', pair[2]) end
end
return 1
