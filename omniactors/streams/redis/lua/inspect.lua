-- The numbers of one stream. {topic, agents known to have groups}
-- Answers {length, scheduled, groups}, a group is {name, new, due, held, delayed, dead letters}.
local topic = arguments[1]
local key, time, groups = stream_of(topic), now(), {}

-- How many entries come after the last one that was delivered.
local function new_of(group, pending)
    -- What others trimmed away still counts as lag.
    if group['lag'] then return math.min(group['lag'], call('XLEN', key)) end
    local count, start = 0, '(' .. group['last-delivered-id']
    while true do
        local rows = call('XRANGE', key, start, '+', 'COUNT', 500)
        if #rows == 0 then return count end
        count, start = count + #rows, '(' .. rows[#rows][1]
    end
end

for i, group in ipairs(groups_on(key)) do
    local name = group['name']
    local pending = call('XPENDING', key, name)
    local held = 0
    for _, row in ipairs(pending[4] or {}) do
        if row[1] ~= WAITING then held = held + tonumber(row[2]) end
    end
    groups[i] = {
        name, new_of(group, pending), call('ZCOUNT', waiting_of(name), '-inf', time), held,
        call('ZCOUNT', waiting_of(name), '(' .. time, '+inf'), call('XLEN', P .. 'omni-dlq:' .. name),
    }
end
return {call('XLEN', key), call('ZCARD', later_of(topic)), groups}
