-- How many entries a consumer holds in some groups, counted up to 2. {consumer, groups}
local consumer, groups = unpack(arguments)
local count = 0
for _, group in ipairs(groups) do
    local topic = topic_of(group)
    local rows = topic and pcall_('XPENDING', stream_of(topic), group, '-', '+', 2, consumer) or {}
    if not rows.err then count = count + #rows end
    if count > 1 then return 2 end
end
return count
