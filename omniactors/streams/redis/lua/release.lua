-- Give entries back. {caller, consumer, blocks}, a block is {topic, agent, ids}
local caller, consumer, blocks = unpack(arguments)
local before = replayed(caller)
if before then return before end
open_for_writing()
for _, block in ipairs(blocks) do
    local topic, agent, ids = unpack(block)
    local key, group, owned, seen = stream_of(topic), group_of(topic, agent), {}, {}
    for _, id in ipairs(ids) do
        -- One that is named twice goes back once: a second time it would open the gate for an entry that is still here.
        if not seen[id] and is_owned(key, group, id, consumer) then owned[#owned + 1] = id end
        seen[id] = true
    end
    give_back(group, owned, consumer)
end
return record(caller, 1)
