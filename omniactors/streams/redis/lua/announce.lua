-- Change the record of a consumer that is registered; its agents that are to be tried again have been.
-- {consumer, record}; answers 1 if it is.
local consumer, record_ = unpack(arguments)
if call('HEXISTS', P .. 'omni-consumers', consumer) == 0 then return 0 end
open_for_writing()
call('HSET', P .. 'omni-consumers', consumer, record_)
call('DEL', wanted_of(consumer))
note_served(record_)
return 1
