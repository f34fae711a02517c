-- Take entries. {client, number, consumer, its lease in ms, wants}, a want is {topic, agent, credit, limit or -1, 1 if ordered}
-- Answers nil when the consumer is not (or no more) registered, else for each want
-- {1 if paused, 1 if the group was missing, top id or '' while there may be more, next due in ms or -1,
--  retried {id, fields, "attempts crashes deliveries"}, new, how many others trimmed away,
-- -1 when the key of the stream holds something else}, and behind them 1 when the bytes ran out before the credit.
-- `new` has two values for each entry: its id, and its body, or its fields when they do not begin with `data`.
local client, number, consumer, lease, wants = unpack(arguments)
-- A packet that was held up until others had been sent in its place takes nothing.
local void = call('HGET', P .. 'omni-calls:' .. client, 'fetch')
if void and tonumber(void) >= number then return {err = 'ERR this call is over'} end
if call('HEXISTS', P .. 'omni-consumers', consumer) == 0 then return nil end
open_for_writing()
-- Who is just being taken over from, and lives, stops that before it takes anything.
if call('EXISTS', lease_of(consumer)) == 0 then call('SET', lease_of(consumer), '1', 'PX', lease) end

local time = now()
-- Bytes of bodies that one fetch brings, but for what goes beyond with the last portion: 8 MiB.
local left, count_so_far, bytes_so_far = 8388608, 0, 0

-- How many to ask for: a few, and once it is known how large they are, as many as there are bytes for.
local function portion(room)
    if bytes_so_far == 0 then return math.min(room, 8) end
    return math.max(1, math.min(room, math.floor(left * count_so_far / bytes_so_far)))
end

local function weigh(fields)
    local size = #fields[2]
    left, count_so_far, bytes_so_far = left - size, count_so_far + 1, bytes_so_far + size
end

local has_scheduled = call('EXISTS', P .. 'omni-scheduled') == 1
local paused = {}
for _, agent in ipairs(call('SMEMBERS', P .. 'omni-paused')) do paused[agent] = true end

local function room_under(limit, key, group)
    local pending = try('XPENDING', key, group)
    if pending.err or pending[1] == 0 then return limit end
    for _, row in ipairs(pending[4]) do
        if row[1] ~= WAITING then limit = limit - tonumber(row[2]) end
    end
    return math.max(limit, 0)
end

local function is_gated(group)
    local gate = call('HGET', order_of(group), 'gate')
    local holder = gate and count_of(gate)
    -- Not by its lease: what a vanished holder fetched has to come back before the gate opens.
    return holder and holder ~= consumer and call('HEXISTS', P .. 'omni-consumers', holder) == 1
end

local function with_tries(key, group, id, fields)
    local row = call('XPENDING', key, group, id, id, 1)[1]
    return {id, fields, (call('HGET', tries_of(group), id) or '0 0') .. ' ' .. (row and row[4] or 1)}
end

-- What was in the list of a group, but is in its stream no more: another program trimmed it away.
local function strike(key, group, id)
    if call('EXISTS', order_of(group)) == 1 then unclaim(group, id, consumer) end
    call('HDEL', tries_of(group), id)
    local acknowledged = try('XACK', key, group, id)
    return acknowledged == 1 or #call('XRANGE', key, id, id) == 0
end

-- Entries that other consumers handed over to us.
local function take_inbox(key, group, room, taken)
    local inbox, count, lost = inbox_of(group, consumer), 0, 0
    local ids, seen = call('LRANGE', inbox, 0, room - 1), 0
    for _, id in ipairs(ids) do
        if left <= 0 then break end
        seen = seen + 1
        local found = call('XRANGE', key, id, id)
        if found[1] then
            weigh(found[1][2])
            taken[#taken + 1] = with_tries(key, group, id, found[1][2])
            count = count + 1
        elseif strike(key, group, id) then
            lost = lost + 1
        end
    end
    if seen > 0 then call('LTRIM', inbox, seen, -1) end
    return count, lost
end

-- Released and due entries.
local function take_waiting(key, group, room, taken)
    local waiting, count, lost = waiting_of(group), 0, 0
    while count < room and left > 0 do
        local due = call('ZRANGEBYSCORE', waiting, '-inf', time, 'LIMIT', 0, math.min(portion(room - count), 500))
        if #due == 0 then break end
        call('ZREM', waiting, unpack(due))
        local bodies = {}
        local claimed = try('XCLAIM', key, group, consumer, 0, unpack(due))
        for _, entry in ipairs(claimed) do
            if entry and entry[2] then bodies[entry[1]] = entry[2] end
        end
        for _, padded in ipairs(due) do
            local id = plain(padded)
            if bodies[id] then
                weigh(bodies[id])
                taken[#taken + 1] = with_tries(key, group, id, bodies[id])
                count = count + 1
            elseif strike(key, group, id) then
                lost = lost + 1
            end
        end
    end
    return count, lost
end

-- Entries meant for another group alone are passed over.
local function is_for_other(fields, agent)
    for i = 3, #fields, 2 do
        if fields[i] == 'only' and fields[i + 1] ~= agent then return true end
    end
    return false
end

-- `is_foreign` when the key holds no stream; `top` is the last id seen, '' when there may be more, nil when none was.
local function take_new(key, want, group, room, taken)
    local topic, agent, created, count, top = want[1], want[2], false, 0, nil
    while room > 0 and left > 0 do
        local most = portion(room)
        local reply = try('XREADGROUP', 'GROUP', group, consumer, 'COUNT', most, 'STREAMS', key, '>')
        if reply and reply.err then
            if has_code(reply, 'WRONGTYPE') then return {is_foreign = true} end
            if created then return call('XREADGROUP', 'GROUP', group, consumer, 'STREAMS', key, '>') end
            create_group(topic, agent)
            created = true
        elseif not reply then
            break
        else
            local skipped, entries = {}, reply[1][2]
            top = entries[#entries][1]
            for _, entry in ipairs(entries) do
                local fields = entry[2]
                if #fields > 2 and is_for_other(fields, agent) then
                    skipped[#skipped + 1] = entry[1]
                else
                    weigh(fields)
                    taken[2 * count + 1] = entry[1]
                    taken[2 * count + 2] = fields[1] == 'data' and fields[2] or fields
                    count = count + 1
                    room = room - 1
                end
            end
            if #skipped == 0 and #entries < most then break end
            for _, id in ipairs(skipped) do call('XACK', key, group, id) end
            delete_finished(topic, skipped, number)
        end
    end
    return {count = count, created = created, top = (room == 0 and count > 0 or left <= 0) and '' or top}
end

local function top_of(key)
    local newest = try('XREVRANGE', key, '+', '-', 'COUNT', 1)
    if newest.err then return nil end
    return newest[1] and newest[1][1] or '0-0'
end

local FOREIGN = {0, 0, '0-0', -1, {}, {}, -1}

-- Most groups, most of the time: nothing but new entries to take. It asks half as much of the server as `answer`.
local function answer_plainly(want, key, group)
    local new = {}
    local fresh = take_new(key, want, group, math.max(want[3], 0), new)
    if fresh.is_foreign then return FOREIGN end
    return {0, fresh.created and 1 or 0, fresh.top or top_of(key), -1, {}, new, 0}
end

local function answer(want)
    local topic, agent, credit, limit, ordered = unpack(want)
    local key, group = stream_of(topic), group_of(topic, agent)
    local has_waiting = call('EXISTS', waiting_of(group)) == 1
    if credit > 0 and limit < 0 and ordered ~= 1 and not (has_waiting or has_scheduled or paused[agent]) then
        return answer_plainly(want, key, group)
    end
    if not top_of(key) then return FOREIGN end
    local is_paused, is_created, room, next_due, lost = 0, 0, math.max(credit, 0), nil, 0
    local retried, new = {}, {}
    if has_scheduled then next_due = promote(topic, time) end
    if paused[agent] then
        is_paused, room = 1, 0
    end
    if room > 0 and ordered == 1 then
        local count
        count, lost = take_inbox(key, group, room, retried)
        room = room - count
        call('HDEL', order_of(group), 'x:' .. consumer)
        local hold = call('PTTL', hold_of(group))
        if hold > 0 then
            room, next_due = 0, math.min(next_due or math.huge, time + hold)
        elseif room > 0 and is_gated(group) then
            call('SADD', P .. 'omni-clipped', group)
            room = 0
        end
    end
    if room > 0 and limit >= 0 then
        local allowed = room_under(limit, key, group)
        if allowed < room then
            call('SADD', P .. 'omni-clipped', group)
            room = allowed
        end
    end
    local unclaimed = 0
    if room > 0 then
        local count, gone = take_waiting(key, group, room, retried)
        room, unclaimed, lost = room - count, count, lost + gone
        local fresh = take_new(key, want, group, room, new)
        if fresh.created then is_created = 1 end
        unclaimed = unclaimed + fresh.count
    elseif try('XPENDING', key, group).err and create_group(topic, agent) then
        is_created = 1
    end
    if ordered == 1 and unclaimed > 0 then
        local gate = call('HGET', order_of(group), 'gate')
        local holder, open = nil, 0
        if gate then holder, open = count_of(gate) end
        if holder ~= consumer then open = 0 end
        call('HSET', order_of(group), 'gate', consumer .. ' ' .. (open + unclaimed))
    end
    local first = has_waiting and call('ZRANGEBYSCORE', waiting_of(group), '(' .. time, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if first and first[2] and (next_due == nil or tonumber(first[2]) < next_due) then next_due = tonumber(first[2]) end
    return {
        is_paused, is_created, top_of(key), next_due and math.max(next_due - time, 0) or -1, retried, new, lost,
    }
end

local answers = {}
for i, want in ipairs(wants) do answers[i] = answer(want) end
answers[#wants + 1] = left <= 0 and 1 or 0
return answers
