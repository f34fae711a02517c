-- Change the record of a consumer that is registered. {consumer, record}; answers 1 if it is.
local consumer, record_ = unpack(arguments)
if call('HEXISTS', P .. 'omni-consumers', consumer) == 0 then return 0 end
open_for_writing()
call('HSET', P .. 'omni-consumers', consumer, record_)
return 1
