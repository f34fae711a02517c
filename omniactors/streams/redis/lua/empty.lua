-- Remove the stream of a topic without groups, and what is scheduled for it. {caller, topic}; answers how many.
local caller, topic = unpack(arguments)
local before = replayed(caller)
if before then return before end
if #groups_on(stream_of(topic)) > 0 then return record(caller, 0) end
open_for_writing()
local count = call('XLEN', stream_of(topic)) + call('ZCARD', later_of(topic))
call('DEL', stream_of(topic), later_of(topic))
call('ZREM', P .. 'omni-scheduled', topic)
return record(caller, count)
