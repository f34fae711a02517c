-- After a fetch whose reply was lost: give back what is in a consumer's hands without its knowledge.
-- {client, number of that fetch, consumer, blocks}; should its packet still come, it takes nothing. A block is {topic, agent, ids that it knows}
local client, number, consumer, blocks = unpack(arguments)
open_for_writing()
call('HSET', P .. 'omni-calls:' .. client, 'fetch', string.format('%.0f', number))
call('PEXPIRE', P .. 'omni-calls:' .. client, 86400000)
local count = 0
for _, block in ipairs(blocks) do
    local topic, agent, known_ids = unpack(block)
    local key, group, known, start = stream_of(topic), group_of(topic, agent), {}, '-'
    local inbox, order = inbox_of(group, consumer), order_of(group)
    for _, id in ipairs(known_ids) do known[id] = true end
    for _, id in ipairs(call('LRANGE', inbox, 0, -1)) do known[id] = true end
    local unknown, handed = {}, {}
    while true do
        local rows = try('XPENDING', key, group, start, '+', 500, consumer)
        if rows.err or #rows == 0 then break end
        for _, row in ipairs(rows) do
            local id = row[1]
            if not known[id] then
                -- A claimed entry keeps its place in the order of its key.
                local list = call('HEXISTS', order, 'e:' .. id) == 1 and handed or unknown
                list[#list + 1] = id
            end
            start = '(' .. id
        end
    end
    for i = #handed, 1, -1 do call('LPUSH', inbox, handed[i]) end
    if #handed > 0 then ring(topic) end
    give_back(group, unknown, consumer)
    count = count + #unknown + #handed
end
return count
