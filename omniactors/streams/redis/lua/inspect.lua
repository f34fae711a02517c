-- The numbers of one stream. {topic, agents known to have groups}
-- Answers {length, scheduled, groups}, a group is {name, new, due, held, delayed, dead letters, served at or ''}.
local topic = arguments[1]
local key, time, groups = stream_of(topic), now(), {}

-- How many entries come after the last one that was delivered: as Redis 7 knows, or as what is not
-- pending, which is right for a lone group, or counted, but never for long.
local function new_of(group, pending, is_alone)
    local length = call('XLEN', key)
    -- What others trimmed away still counts as lag.
    if group['lag'] then return math.min(group['lag'], length) end
    local rest = math.max(length - pending[1], 0)
    if is_alone then return rest end
    local count, start = 0, '(' .. group['last-delivered-id']
    while count < 10000 do
        local rows = call('XRANGE', key, start, '+', 'COUNT', 500)
        if #rows == 0 then return count end
        count, start = count + #rows, '(' .. rows[#rows][1]
    end
    return math.max(rest, count)
end

local infos = groups_on(key)
for i, group in ipairs(infos) do
    local name = group['name']
    local pending = call('XPENDING', key, name)
    local held = 0
    for _, row in ipairs(pending[4] or {}) do
        if row[1] ~= WAITING then held = held + tonumber(row[2]) end
    end
    groups[i] = {
        name, new_of(group, pending, #infos == 1), call('ZCOUNT', waiting_of(name), '-inf', time), held,
        call('ZCOUNT', waiting_of(name), '(' .. time, '+inf'), call('XLEN', P .. 'omni-dlq:' .. name),
        call('HGET', P .. 'omni-served', name) or '',
    }
end
local length = try('XLEN', key)
return {type(length) == 'number' and length or 0, call('ZCARD', later_of(topic)), groups}
