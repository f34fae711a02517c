-- What a consumer does from time to time. {consumer, cursor, lease in seconds, most crashes of what is not known}
-- Promotes delayed publications, trims some streams, and answers
-- {1 if we are registered, vanished consumers, ms until the next lease of another one could end or -1,
--  ms until the next delayed publication or -1, cursor, {what could not be looked after, why, ...}}.
-- Each topic and group is looked after by itself: one that cannot be read keeps nobody from the others.
local consumer, cursor, lease, most = unpack(arguments)
open_for_writing()
local problems = {}

local function look_after(member, care, ...)
    local is_well, problem = pcall(care, ...)
    if is_well then return problem end
    problems[#problems + 1] = member
    problems[#problems + 1] = type(problem) == 'table' and problem.err or tostring(problem)
end

-- What consumers hold that are none of ours, as those of another program that is gone: an hour is long.
local function take_from_strangers(group)
    local key = stream_of(topic_of(group))
    local consumers = try('XINFO', 'CONSUMERS', key, group)
    for _, info in ipairs(consumers) do
        local name = fields_of(info)['name']
        if name ~= WAITING and call('HEXISTS', P .. 'omni-consumers', name) == 0 then
            local ids = {}
            for i, row in ipairs(call('XPENDING', key, group, 'IDLE', 3600000, '-', '+', 100, name)) do
                ids[i] = row[1]
                note_crash(group, row[1], most)
            end
            give_back(group, ids, name)
        end
    end
end

local time, vanished, next_end = now(), {}, -1
local is_registered = call('HEXISTS', P .. 'omni-consumers', consumer)
for _, other in ipairs(call('HKEYS', P .. 'omni-consumers')) do
    if other ~= consumer then
        local left = call('PTTL', lease_of(other))
        if left < 0 then
            vanished[#vanished + 1] = other
        elseif next_end < 0 or left < next_end then
            next_end = left
        end
    end
end
-- While a server was away leases ended, and nobody could renew them.
if #vanished > 0 then
    local info = pcall_('INFO', 'server')
    local uptime = type(info) == 'string' and tonumber(info:match('uptime_in_seconds:(%d+)'))
    if uptime and uptime <= lease then vanished = {} end
end
local next_due = -1
for _, topic in ipairs(call('ZRANGEBYSCORE', P .. 'omni-scheduled', '-inf', time, 'LIMIT', 0, 50)) do
    local before = #problems
    if look_after(topic, promote, topic, time) then ring(topic) end
    -- Later, so that it does not stand in front of the others.
    if #problems > before then call('ZADD', P .. 'omni-scheduled', 'XX', time + 60000, topic) end
end
local first = call('ZRANGE', P .. 'omni-scheduled', 0, 0, 'WITHSCORES')
if first[2] then next_due = math.max(tonumber(first[2]) - time, 0) end
local found = call('SSCAN', P .. 'omni-groups', cursor, 'COUNT', 20)
local trimmed = {}
for _, group in ipairs(found[2]) do
    look_after(group, function()
        local topic = topic_of(group)
        if not trimmed[topic] then trim(topic) end
        trimmed[topic] = true
        take_from_strangers(group)
    end)
end
return {is_registered, vanished, next_end, next_due, found[1], problems}
