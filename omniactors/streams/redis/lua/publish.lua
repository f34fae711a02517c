-- Append publications, all or none. {caller, limit or -1, window, runs}; their bodies are ARGV[2] and on, in order.
-- A run is {topic, count} for so many that are only appended, or {topic, 1, id to remember or '', at or 0, delay}.
-- Answers their entry ids, or {'full', topic, length, how many were to be added} when a stream has no room.
local caller, limit, window, runs = unpack(arguments)
local before = replayed(caller)
if before then return before end

-- A topic whose key is no stream is refused here, before anything is written.
local more, seen, has_delays = {}, {}, false
for _, run in ipairs(runs) do
    local topic, count, task_id = run[1], run[2], run[3]
    if task_id then
        has_delays = has_delays or run[4] > 0 or run[5] > 0
        if task_id ~= '' and window > 0 then
            local key = id_key(topic, task_id)
            if seen[key] or call('EXISTS', key) == 1 then count = 0 end
            seen[key] = true
        end
    end
    more[topic] = (more[topic] or 0) + count
end
local has_later = has_delays or call('EXISTS', P .. 'omni-scheduled') == 1
local function length_of(topic)
    return call('XLEN', stream_of(topic)) + (has_later and call('ZCARD', later_of(topic)) or 0)
end
for topic, count in pairs(more) do
    if length_of(topic) + count > limit and limit >= 0 and count > 0 then
        trim(topic)
        local length = length_of(topic)
        -- Noted too: a packet that was held up until there is room must not append what was refused.
        if length + count > limit then return record(caller, {'full', topic, length, count}) end
    end
end

local time, ids, place = has_delays and now() or 0, {}, 1
for _, run in ipairs(runs) do
    if run[3] then
        ids[place] = append_once({run[1], run[3], ARGV[place + 1], run[4], run[5]}, time, window)
    else
        local key = stream_of(run[1])
        for i = place, place + run[2] - 1 do ids[i] = call('XADD', key, '*', 'data', ARGV[i + 1]) end
    end
    place = place + run[2]
end
-- Where only other programs read, nobody else trims what all of them have finished.
if caller[3] % 256 == 0 then trim(runs[1][1]) end
return record(caller, ids)
