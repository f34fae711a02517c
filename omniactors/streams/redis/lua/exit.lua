-- Be a consumer no more. {consumer, 1 if somebody else says so: then only if its lease has ended}
local consumer, is_said_by_other = unpack(arguments)
if is_said_by_other == 1 and call('EXISTS', lease_of(consumer)) == 1 then return 0 end
open_for_writing()
note_served(call('HGET', P .. 'omni-consumers', consumer))
call('HDEL', P .. 'omni-consumers', consumer)
call('DEL', lease_of(consumer), wanted_of(consumer))
return 1
