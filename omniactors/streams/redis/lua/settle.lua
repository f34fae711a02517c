-- Carry out settlements, each whole or not at all. {caller, consumer, blocks}
-- A block is {topic, agent, settlements, plain, ttl} and a settlement {id, kind, ...}:
--   {id, 'done', result, publications}
--   {id, 'dead', result, publications, dead letter}
--   {id, 'retry', delay, attempts}
-- A result is {} or {task_id, status, record, ttl}. Each ends with the handler's seconds, as text.
-- `plain` is how many settlements of the block only store a success, for `ttl`. They are most of all, and cost half
-- as much here: ARGV has four words for each, in order: id, task_id, record, seconds.
-- Answers one flag for each settlement, the plain ones of a block first: 0 when its entry was not the consumer's any more.
local caller, consumer, blocks = unpack(arguments)
local before = replayed(caller)
if before then return before end

-- What the keys that are written hold is asked first: an error midway would leave half of it behind.
local next_word = 2
for _, block in ipairs(blocks) do
    local results = {}
    for place = next_word, next_word + 4 * block[4] - 4, 4 do
        results[#results + 1] = P .. 'omni-result:' .. ARGV[place + 1]
    end
    next_word = next_word + 4 * block[4]
    block.are_new = #results == 0 or call('EXISTS', unpack(results)) == 0
    if not block.are_new then
        for _, result in ipairs(results) do call('HEXISTS', result, '') end
    end
    for _, settlement in ipairs(block[3]) do
        if settlement[2] ~= 'retry' then
            if settlement[3][1] then call('HEXISTS', P .. 'omni-result:' .. settlement[3][1], '') end
            for _, publication in ipairs(settlement[4]) do
                call('XLEN', stream_of(publication[1]))
                call('ZCARD', later_of(publication[1]))
            end
        end
        if settlement[2] == 'dead' then call('XLEN', P .. 'omni-dlq:' .. group_of(block[1], block[2])) end
    end
end
open_for_writing()

local time, flags = now(), {}

-- A failure never replaces a success that has not expired.
local function store(agent, result)
    local key = P .. 'omni-result:' .. result[1]
    local status, record_, ttl = result[2], result[3], result[4]
    if status ~= 'success' then
        local old = call('HGET', key, agent)
        if old then
            local expires, its_status = old:match('^(%d+) (%a+) ')
            if its_status == 'success' and tonumber(expires) > time then return end
        end
    end
    call('HSET', key, agent, string.format('%.0f ', time + ttl) .. status .. ' ' .. record_)
    -- Other agents' results of the task may live longer.
    if call('PTTL', key) < ttl then call('PEXPIRE', key, math.max(ttl, 1)) end
    call('PUBLISH', P .. 'omni-done:' .. result[1], '')
end

-- The ids of dead letters are unique and in order over all groups, unless the clock went back.
local function bury(group, letter)
    local key = P .. 'omni-dlq:' .. group
    local id = string.format('%.0f-', time) .. call('INCR', P .. 'omni-serial')
    if pcall_('XADD', key, id, 'data', letter).err then call('XADD', key, '*', 'data', letter) end
end

-- The successes of some tasks, at `places` of ARGV, for one agent.
local function store_plain(agent, places, ttl, are_new)
    -- Numbers are spelled out once: Redis spells each that it gets, which takes as long as what it is for.
    local prefix, ttl_ = string.format('%.0f success ', time + ttl), string.format('%.0f', math.max(ttl, 1))
    for _, place in ipairs(places) do
        local key = P .. 'omni-result:' .. ARGV[place + 1]
        call('HSET', key, agent, prefix .. ARGV[place + 2])
        -- Other agents' results of the task may live longer.
        if are_new or call('PTTL', key) < ttl then call('PEXPIRE', key, ttl_) end
        call('PUBLISH', P .. 'omni-done:' .. ARGV[place + 1], '')
    end
end

local has_clipped = call('EXISTS', P .. 'omni-clipped') == 1
next_word = 2
for _, block in ipairs(blocks) do
    local topic, agent, settlements, plain, ttl = unpack(block)
    local key, group = stream_of(topic), group_of(topic, agent)
    local tries = tries_of(group)
    local has_notes = call('EXISTS', order_of(group), tries) > 0
    local is_ordered = has_notes and call('EXISTS', order_of(group)) == 1
    local counts = {done = 0, dead = 0, retry = 0}
    local ids, finished, places, seconds = {}, {}, {}, 0
    local first, last = next_word, next_word + 4 * plain - 4
    next_word = last + 4
    for place = first, last, 4 do ids[#ids + 1] = ARGV[place] end
    for _, settlement in ipairs(settlements) do ids[#ids + 1] = settlement[1] end
    local owned = owned_among(key, group, ids, consumer)

    -- The entry leaves the consumer's hands: true when it was there.
    local function let_go(id, kind, seconds_)
        local is_ours = owned[id]
        if is_ours then
            owned[id] = false
            seconds = seconds + tonumber(seconds_)
            counts[kind] = counts[kind] + 1
            if is_ordered and unclaim(group, id, consumer) then unclip(topic, group) end
            if kind ~= 'retry' then finished[#finished + 1] = id end
        elseif is_ordered and call('HEXISTS', order_of(group), 'e:' .. id) == 1
            and #try('XPENDING', key, group, id, id, 1) == 0 then
            unclaim(group, id, consumer) -- somebody else acknowledged it
        end
        flags[#flags + 1] = is_ours and 1 or 0
        return is_ours
    end

    for place = first, last, 4 do
        if let_go(ARGV[place], 'done', ARGV[place + 3]) then places[#places + 1] = place end
    end
    if #places > 0 then store_plain(agent, places, ttl, block.are_new) end
    for _, settlement in ipairs(settlements) do
        local id, kind = settlement[1], settlement[2]
        if let_go(id, kind, settlement[#settlement]) then
            if kind == 'retry' then
                call('XCLAIM', key, group, WAITING, 0, id, 'JUSTID')
                call('ZADD', waiting_of(group), time + settlement[3], pad(id))
                call('HSET', tries, id, settlement[4] .. ' 0')
            else
                local result, publications = settlement[3], settlement[4]
                if kind == 'dead' then bury(group, settlement[5]) end
                if result[1] then store(agent, result) end
                for _, publication in ipairs(publications) do append(publication, time) end
            end
        end
    end
    if #finished > 0 then
        call('XACK', key, group, unpack(finished))
        delete_finished(topic, finished, caller[3])
        if has_notes then call('HDEL', tries, unpack(finished)) end
    end
    if counts.retry > 0 then ring(topic) end
    if #finished > 0 or counts.retry > 0 then
        if has_clipped then unclip(topic, group) end
        local key_ = P .. 'omni-counts:' .. group
        for kind, count in pairs(counts) do
            if count > 0 then call('HINCRBY', key_, kind, count) end
        end
        if seconds > 0 then call('HINCRBYFLOAT', key_, 'seconds', string.format('%.6f', seconds)) end
    end
end
return record(caller, flags)
