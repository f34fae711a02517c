-- Give back what a consumer holds in some groups. {consumer, begun, most, groups}
-- `begun` are those entries, as "SHA-1 of the group's name, blank, id", whose crashes count; of several up to `most`. It
-- is false when that is not known, since it was found to have vanished: then nothing is done while its lease lives, and
-- each entry has one crash more, up to so many (`most`; false for no limit).
-- Answers -1 when it lives, else the number of groups (from the first) that are done.
local consumer, begun, most, groups = unpack(arguments)
if not begun and call('EXISTS', lease_of(consumer)) == 1 then return -1 end
open_for_writing()
local counts = {}
for _, name in ipairs(begun or {}) do counts[name] = true end

local function leave(group)
    local topic = topic_of(group)
    local key, inbox = stream_of(topic), inbox_of(group, consumer)
    local digest, handed, count = redis.sha1hex(group), {}, 0
    for _, id in ipairs(call('LRANGE', inbox, 0, -1)) do handed[id] = true end
    while count < 2000 do
        local rows = try('XPENDING', key, group, '-', '+', 500, consumer)
        if rows.err or #rows == 0 then break end
        local ids = {}
        for j, row in ipairs(rows) do
            ids[j] = row[1]
            if begun and counts[digest .. ' ' .. row[1]] then
                note_crash(group, row[1], #begun > 1 and most)
            elseif not begun and not handed[row[1]] then
                note_crash(group, row[1], most)
            end
        end
        give_back(group, ids, consumer)
        count = count + #ids
    end
    if count >= 2000 then return count end
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
    return count
end

local budget = 2000
for i, group in ipairs(groups) do
    -- A group that cannot be read keeps nobody from the others.
    local is_well, count = pcall(leave, group)
    if is_well then
        budget = budget - count
        if count >= 2000 then return i - 1 end
        if budget <= 0 then return i end
    end
end
return #groups
