-- Take no more of some groups: what was handed over goes back. {consumer, groups}, a group is {topic, agent}
-- Until the consumer fetches for a group again nothing of it is handed over to it.
local consumer, groups = unpack(arguments)
open_for_writing()
for _, pair in ipairs(groups) do
    local topic, group = pair[1], group_of(pair[1], pair[2])
    if call('EXISTS', order_of(group)) == 1 then
        call('HSET', order_of(group), 'x:' .. consumer, '1')
        local inbox = inbox_of(group, consumer)
        give_back(group, call('LRANGE', inbox, 0, -1), consumer)
        call('DEL', inbox)
    end
end
return 1
