-- Claim fetched entries of one ordered group. {consumer, topic, agent, entries}, an entry is {id, key}
-- Answers one flag for each: 0 when it was handed over to the consumer that is at work on its key,
-- or given back because earlier ones came back meanwhile.
local consumer, topic, agent, entries = unpack(arguments)
open_for_writing()
local key, group = stream_of(topic), group_of(topic, agent)
local order, flags, is_open = order_of(group), {}, false

local function hand_over(id, ordering, holder)
    call('HSET', order, 'e:' .. id, ordering)
    call('XCLAIM', key, group, holder, 0, id, 'JUSTID')
    call('RPUSH', inbox_of(group, holder), id)
    ring(topic)
end

local released = call('ZRANGEBYSCORE', waiting_of(group), 0, 0, 'LIMIT', 0, 1)[1]
for i, entry in ipairs(entries) do
    local id, ordering = entry[1], entry[2]
    local is_ours = is_owned(key, group, id, consumer)
    if is_ours and call('HEXISTS', order, 'e:' .. id) == 0 then
        local held = call('HGET', order, 'k:' .. ordering)
        local holder, count = consumer, 0
        if held then holder, count = count_of(held) end
        -- A key may be left behind by somebody who is gone, when others took its entries off the list.
        if holder ~= consumer and call('HEXISTS', P .. 'omni-consumers', holder) == 0 then
            holder, count = consumer, 0
        end
        if released and released < pad(id) then
            give_back(group, {id}, consumer)
            is_ours = false
        elseif call('HEXISTS', order, 'x:' .. holder) == 1 then
            -- Nobody can have it before its holder is done with the key: look again soon, not at once.
            put_back(group, {id}, consumer)
            call('SET', hold_of(group), '1', 'PX', 100)
            is_ours = false
        else
            call('HSET', order, 'k:' .. ordering, holder .. ' ' .. (count + 1))
            if holder == consumer then
                call('HSET', order, 'e:' .. id, ordering)
            else
                hand_over(id, ordering, holder)
                is_ours = false
            end
            local gate = call('HGET', order, 'gate')
            if gate and count_of(gate) == consumer then is_open = lower(order, 'gate') or is_open end
        end
    end
    flags[i] = is_ours and 1 or 0
end
if is_open then unclip(topic, group) end
return flags
