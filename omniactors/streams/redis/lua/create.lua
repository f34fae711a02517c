-- Create groups at the start of their streams. {groups}, a group is {topic, agent}
open_for_writing()
for _, group in ipairs(arguments[1]) do create_group(group[1], group[2]) end
return 1
