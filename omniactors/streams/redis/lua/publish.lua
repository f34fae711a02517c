-- Append publications, all or none. {caller, limit or -1, window, publications}
-- Answers their entry ids, or {'full', topic, length} when a stream has no room.
local caller, limit, window, publications = unpack(arguments)
local before = replayed(caller)
if before then return before end

if limit >= 0 then
    local more, seen = {}, {}
    for _, publication in ipairs(publications) do
        local topic, task_id = publication[1], publication[2]
        local is_known = false
        if task_id ~= '' and window > 0 then
            local key = id_key(topic, task_id)
            is_known = seen[key] or call('EXISTS', key) == 1
            seen[key] = true
        end
        if not is_known then more[topic] = (more[topic] or 0) + 1 end
    end
    for topic, count in pairs(more) do
        local length = call('XLEN', stream_of(topic)) + call('ZCARD', later_of(topic))
        if length + count > limit then
            trim(topic)
            length = call('XLEN', stream_of(topic)) + call('ZCARD', later_of(topic))
            if length + count > limit then return {'full', topic, length} end
        end
    end
end

local time, ids = 0, {}
for _, publication in ipairs(publications) do
    if publication[4] > 0 or publication[5] > 0 then
        time = now()
        break
    end
end
for i, publication in ipairs(publications) do ids[i] = append_once(publication, time, window) end
-- Where only other programs read, nobody else trims what all of them have finished.
if caller[3] % 256 == 0 then trim(publications[1][1]) end
return record(caller, ids)
