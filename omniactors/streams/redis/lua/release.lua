-- Give entries back. {caller, consumer, blocks}, a block is {topic, agent, ids}
local caller, consumer, blocks = unpack(arguments)
local before = replayed(caller)
if before then return before end
open_for_writing()
for _, block in ipairs(blocks) do
    local topic, agent, ids = unpack(block)
    local key, group, owned = stream_of(topic), group_of(topic, agent), {}
    for _, id in ipairs(ids) do
        if is_owned(key, group, id, consumer) then owned[#owned + 1] = id end
    end
    give_back(group, owned, consumer)
end
return record(caller, 1)
