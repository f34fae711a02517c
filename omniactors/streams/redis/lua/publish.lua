-- Append publications, all or none. {caller, limit or -1, window, publications}
-- Answers their entry ids, or {'full', topic, length, how many were to be added} when a stream has no room.
local caller, limit, window, publications = unpack(arguments)
local before = replayed(caller)
if before then return before end

-- A topic whose key is no stream is refused here, before anything is written.
local more, seen = {}, {}
for _, publication in ipairs(publications) do
    local topic, task_id = publication[1], publication[2]
    local is_known = false
    if task_id ~= '' and window > 0 then
        local key = id_key(topic, task_id)
        is_known = seen[key] or call('EXISTS', key) == 1
        seen[key] = true
    end
    more[topic] = (more[topic] or 0) + (is_known and 0 or 1)
end
local function length_of(topic) return call('XLEN', stream_of(topic)) + call('ZCARD', later_of(topic)) end
for topic, count in pairs(more) do
    if length_of(topic) + count > limit and limit >= 0 and count > 0 then
        trim(topic)
        local length = length_of(topic)
        if length + count > limit then return {'full', topic, length, count} end
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
