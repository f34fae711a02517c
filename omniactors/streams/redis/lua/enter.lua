-- Be a consumer. {consumer, record, lease in ms}; answers the id of the newest bell.
local consumer, record_, lease = unpack(arguments)
open_for_writing()
call('HSET', P .. 'omni-consumers', consumer, record_)
call('SET', lease_of(consumer), '1', 'PX', lease)
local newest = call('XREVRANGE', CONTROL, '+', '-', 'COUNT', 1)
return newest[1] and newest[1][1] or '0-0'
