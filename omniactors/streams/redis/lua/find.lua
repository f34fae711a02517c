-- Look for a task in a part of a stream. {topic, task id, first entry id, or '' to begin}
-- Answers {where to go on or '', found}, found are {agent or '', 'queued', 'running' or 'retrying'}.
-- At the beginning what is scheduled is looked through too ({'', 'scheduled'}), and what is remembered ({'', 'expired'}).
local topic, task, first = unpack(arguments)
local key, time, found = stream_of(topic), now(), {}

local function is_it(body)
    if not body or not body:find(task, 1, true) then return false end
    local is_json, event = pcall(cjson.decode, body)
    return is_json and type(event) == 'table' and event['task_id'] == task
end

local function place(id, only)
    local groups = groups_on(key)
    if #groups == 0 then found[#found + 1] = {'', 'queued'} end
    for _, group in ipairs(groups) do
        local name = group['name']
        local agent = name:match('[^:]*$')
        local rows = call('XPENDING', key, name, id, id, 1)
        if only and only ~= agent then
            rows = {}
        elseif #rows == 0 then
            if is_before(group['last-delivered-id'], id) then found[#found + 1] = {agent, 'queued'} end
        elseif rows[1][2] ~= WAITING then
            found[#found + 1] = {agent, 'running'}
        else
            local due = tonumber(call('ZSCORE', waiting_of(name), pad(id)) or 0)
            found[#found + 1] = {agent, due > time and 'retrying' or 'queued'}
        end
    end
end

if first == '' then
    for _, member in ipairs(call('ZRANGE', later_of(topic), 0, -1)) do
        if is_it(member:sub(18)) then found[#found + 1] = {'', 'scheduled'} end
    end
    if call('EXISTS', id_key(topic, task)) == 1 then found[#found + 1] = {'', 'expired'} end
end
local rows = try('XRANGE', key, first == '' and '-' or first, '+', 'COUNT', 2000)
if rows.err then return {'', found} end
for _, row in ipairs(rows) do
    local fields = fields_of(row[2])
    if is_it(fields['data']) then place(row[1], fields['only']) end
end
return {#rows == 2000 and '(' .. rows[#rows][1] or '', found}
