-- Give dead letters back to their own group, as new. {caller, limit or -1, topic, agent, letters}; their bodies are
-- ARGV[2] and on, in order. A letter is {its id, task id or ''}: a result that told of its failure goes with it. Answers how many, or {'full', topic, length} when the stream has no room.
local caller, limit, topic, agent, letters = unpack(arguments)
local before = replayed(caller)
if before then return before end
local key, dead, count = stream_of(topic), P .. 'omni-dlq:' .. group_of(topic, agent), 0
if limit >= 0 then
    local length = call('XLEN', key) + call('ZCARD', later_of(topic))
    if length + #letters > limit then return {'full', topic, length} end
end
local function top_of()
    local newest = call('XREVRANGE', key, '+', '-', 'COUNT', 1)
    return newest[1] and newest[1][1] or '0-0'
end

local before_it, newest = top_of(), nil
for i, letter in ipairs(letters) do
    if call('XDEL', dead, letter[1]) == 1 then
        newest = call('XADD', key, '*', 'data', ARGV[i + 1], 'only', agent)
        local results = P .. 'omni-result:' .. letter[2]
        local old = letter[2] ~= '' and call('HGET', results, agent)
        if old and old:match('^%d+ failed ') then call('HDEL', results, agent) end
        count = count + 1
    end
end
-- Other groups pass over it: those that have read all else now, the others when they come to it.
for _, group in ipairs(newest and groups_on(key) or {}) do
    if group['name'] ~= group_of(topic, agent) and not is_before(group['last-delivered-id'], before_it) then
        call('XGROUP', 'SETID', key, group['name'], newest)
    end
end
return record(caller, count)
