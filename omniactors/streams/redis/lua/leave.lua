-- Give back what a consumer holds in some groups. {consumer, crashes, groups}
-- With crashes 1 the consumer has vanished: nothing is done while its lease lives.
-- Answers -1 for that, else the number of groups (from the first) that are done.
local consumer, crashes, groups = unpack(arguments)
if crashes == 1 and call('EXISTS', lease_of(consumer)) == 1 then return -1 end
open_for_writing()
local budget = 2000
for i, group in ipairs(groups) do
    local topic = topic_of(group)
    local key, inbox = stream_of(topic), inbox_of(group, consumer)
    local handed = {}
    for _, id in ipairs(call('LRANGE', inbox, 0, -1)) do handed[id] = true end
    while true do
        local rows = try('XPENDING', key, group, '-', '+', 500, consumer)
        if rows.err or #rows == 0 then break end
        local ids = {}
        for j, row in ipairs(rows) do
            ids[j] = row[1]
            if crashes > 0 and not handed[row[1]] then note_crash(group, row[1]) end
        end
        give_back(group, ids, consumer)
        budget = budget - #ids
        if budget <= 0 then return i - 1 end
    end
    local gate = call('HGET', order_of(group), 'gate')
    if gate and count_of(gate) == consumer then call('HDEL', order_of(group), 'gate') end
    call('HDEL', order_of(group), 'x:' .. consumer)
    call('DEL', inbox)
    local order = call('HGETALL', order_of(group))
    for j = 1, #order, 2 do
        if order[j]:sub(1, 2) == 'k:' and count_of(order[j + 1]) == consumer then
            call('HDEL', order_of(group), order[j])
        end
    end
    try('XGROUP', 'DELCONSUMER', key, group, consumer)
    unclip(topic, group)
end
return #groups
