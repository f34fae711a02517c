-- The records of a task that have not expired. {task_id}
local time, found = now(), {}
local values = call('HGETALL', P .. 'omni-result:' .. arguments[1])
for i = 1, #values, 2 do
    local expires, start = values[i + 1]:match('^(%d+) %a+ ()')
    if tonumber(expires) > time then found[#found + 1] = values[i + 1]:sub(start) end
end
return found
