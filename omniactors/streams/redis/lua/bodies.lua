-- The fields of entries, {} for one that is gone. {blocks}, a block is {topic, ids}
local found = {}
for _, block in ipairs(arguments[1]) do
    for _, id in ipairs(block[2]) do
        local rows = try('XRANGE', stream_of(block[1]), id, id)
        found[#found + 1] = rows[1] and rows[1][2] or {}
    end
end
return found
