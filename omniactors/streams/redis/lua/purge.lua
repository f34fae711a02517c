-- Delete dead letters. {caller, key, ids}; answers how many.
local caller, key, ids = unpack(arguments)
local before = replayed(caller)
if before then return before end
open_for_writing()
return record(caller, call('XDEL', key, unpack(ids)))
