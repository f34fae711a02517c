-- What scripts share: the first paragraph stands before each of them, and of the functions those that
-- it uses. KEYS[1] is the control stream: it carries the prefix of every key, and with it the hash tag.
-- ARGV[1] holds the arguments as MessagePack. Times are milliseconds.
local call, pcall_ = redis.call, redis.pcall
local CONTROL = KEYS[1]
local P = CONTROL:sub(1, -9)
local WAITING = 'omni:waiting'
local arguments = cmsgpack.unpack(ARGV[1])

-- After a first write a script may go on writing when memory is full: consumers can always drain.
local function open_for_writing() call('DEL', P .. 'omni-none') end

local function now()
    local t = call('TIME')
    return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function stream_of(topic) return P .. 'omni-stream:' .. topic end
local function group_of(topic, agent) return 'group:' .. topic .. ':' .. agent end
local function topic_of(group) return group:match('^group:(.*):[^:]*$') end
local function waiting_of(group) return P .. 'omni-waiting:' .. group end
local function tries_of(group) return P .. 'omni-tries:' .. group end
local function order_of(group) return P .. 'omni-order:' .. group end
local function inbox_of(group, consumer) return P .. 'omni-inbox:' .. consumer .. ':' .. group end
local function later_of(topic) return P .. 'omni-later:' .. topic end
local function hold_of(group) return P .. 'omni-hold:' .. group end
local function lease_of(consumer) return P .. 'omni-lease:' .. consumer end
local function wanted_of(consumer) return P .. 'omni-wanted:' .. consumer end

-- Wake whoever waits for something in this topic that is no new entry of its stream.
local function ring(topic) call('XADD', CONTROL, 'MAXLEN', '~', 1000, '*', 't', topic) end

-- Ids sort as text once they are padded; Redis reads both forms.
local function pad(id)
    local ms, seq = id:match('^(%d+)-(%d+)$')
    return ('0'):rep(14 - #ms) .. ms .. '-' .. ('0'):rep(10 - #seq) .. seq
end

local function plain(id)
    local ms, seq = id:match('^0*(%d+)-0*(%d+)$')
    return ms .. '-' .. seq
end

local function is_before(a, b)
    local a_ms, a_seq = a:match('^(%d+)-(%d+)$')
    local b_ms, b_seq = b:match('^(%d+)-(%d+)$')
    if #a_ms ~= #b_ms then return #a_ms < #b_ms end
    if a_ms ~= b_ms then return a_ms < b_ms end
    if #a_seq ~= #b_seq then return #a_seq < #b_seq end
    return a_seq < b_seq
end

-- Whether a reply is an error with this code, its first word; what stands behind it may be anything.
local function has_code(reply, code) return type(reply) == 'table' and reply.err and reply.err:match('^%u+') == code end

-- The reply; that there is no such group, or no stream at this key, is a reply too: about a key that is missing XINFO
-- and XGROUP have no code. Other errors end the script, as errors of the command: so it is repeated.
local function try(command, ...)
    local reply = pcall_(command, ...)
    if type(reply) ~= 'table' or not reply.err or has_code(reply, 'NOGROUP') or has_code(reply, 'WRONGTYPE')
        or ((command == 'XINFO' or command == 'XGROUP') and call('EXISTS', (select(2, ...))) == 0) then
        return reply
    end
    return call(command, ...)
end

local function fields_of(reply)
    local fields = {}
    for i = 1, #reply, 2 do fields[reply[i]] = reply[i + 1] end
    return fields
end

local function groups_on(key)
    local infos = try('XINFO', 'GROUPS', key)
    if infos.err then return {} end
    local groups = {}
    for i, info in ipairs(infos) do groups[i] = fields_of(info) end
    return groups
end

local function create_group(topic, agent)
    local group = group_of(topic, agent)
    local reply = pcall_('XGROUP', 'CREATE', stream_of(topic), group, '0', 'MKSTREAM')
    if reply.err then
        -- Another program's group of this name is ours from now on.
        if not has_code(reply, 'BUSYGROUP') then call('XGROUP', 'CREATE', stream_of(topic), group, '0', 'MKSTREAM') end
        call('SADD', P .. 'omni-groups', group)
        return false
    end
    call('SADD', P .. 'omni-groups', group)
    -- What was noted of a group of this name that is gone does not belong to this one.
    call('DEL', waiting_of(group), tries_of(group), order_of(group))
    return true
end

local function is_owned(key, group, id, consumer)
    local rows = try('XPENDING', key, group, id, id, 1, consumer)
    return rows.err == nil and #rows == 1
end

-- Which of these many ids are a consumer's: mostly those that it has held the longest.
local function owned_among(key, group, ids, consumer)
    local owned, oldest = {}, {}
    local rows = try('XPENDING', key, group, '-', '+', #ids, consumer)
    if rows.err then return owned end
    for _, row in ipairs(rows) do oldest[row[1]] = true end
    for _, id in ipairs(ids) do owned[id] = oldest[id] or is_owned(key, group, id, consumer) end
    return owned
end

-- Trim what stands before everything that some group still needs.
local function trim(topic)
    local key, low = stream_of(topic), nil
    for _, group in ipairs(groups_on(key)) do
        local pending = call('XPENDING', key, group['name'])
        local first
        if pending[1] > 0 then
            first = pending[2]
        else
            local ms, seq = group['last-delivered-id']:match('^(%d+)-(%d+)$')
            if #seq > 15 then return end -- more than a float counts: nobody but a person writes such an id
            first = ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
        end
        if low == nil or is_before(first, low) then low = first end
    end
    if low then call('XTRIM', key, 'MINID', low) end
end

-- Of these ids those that a group has not pending: it is asked once for all between the first and the last of them,
-- and for each where more stands between them.
local function without_pending(key, group, ids, first, last)
    local most, pending, left = #ids + 64, {}, {}
    local rows = call('XPENDING', key, group, first, last, most)
    if #rows == 0 then return ids end
    for _, row in ipairs(rows) do pending[row[1]] = true end
    local known = #rows == most and rows[most][1]
    for _, id in ipairs(ids) do
        local is_pending = pending[id]
        if known and not is_pending and is_before(known, id) then is_pending = #call('XPENDING', key, group, id, id, 1) > 0 end
        if not is_pending then left[#left + 1] = id end
    end
    return left
end

-- Delete those entries that every group has finished. Mostly the first groups that are asked have not: `turn`, any
-- number, says where to begin, so that it is not always the same ones.
local function delete_finished(topic, ids, turn)
    if #ids == 0 then return end
    local key = stream_of(topic)
    local infos = try('XINFO', 'GROUPS', key)
    if #infos > 1 then
        local groups, low = {}, nil
        for i, info in ipairs(infos) do
            local group = fields_of(info)
            local last = group['last-delivered-id']
            groups[i] = group['name']
            if low == nil or is_before(last, low) then low = last end
        end
        local left, first, last = {}, nil, nil
        for _, id in ipairs(ids) do
            if not is_before(low, id) then
                left[#left + 1] = id
                if first == nil or is_before(id, first) then first = id end
                if last == nil or is_before(last, id) then last = id end
            end
        end
        for i = 1, #groups do
            if #left == 0 then return end
            left = without_pending(key, groups[(turn + i) % #groups + 1], left, first, last)
        end
        ids = left
    elseif infos.err then
        return
    end
    for i = 1, #ids, 500 do call('XDEL', key, unpack(ids, i, math.min(i + 499, #ids))) end
end

-- Move delayed publications that are due into their stream; the time of the next one, or nil.
local function promote(topic, time)
    local key = later_of(topic)
    for _, member in ipairs(call('ZRANGEBYSCORE', key, '-inf', time, 'LIMIT', 0, 200)) do
        call('XADD', stream_of(topic), '*', 'data', member:sub(18))
        call('ZREM', key, member)
    end
    local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if first[2] then
        call('ZADD', P .. 'omni-scheduled', first[2], topic)
        return tonumber(first[2])
    end
    call('ZREM', P .. 'omni-scheduled', topic)
    return nil
end

-- Append one publication {topic, task_id or '', body, at or 0, delay}; its entry id, '' while it is delayed.
local function append(publication, time)
    local topic, body, due, delay = publication[1], publication[3], publication[4], publication[5]
    if due == 0 and delay > 0 then due = time + delay end
    if due > time then
        local serial = string.format('%016.0f ', call('INCR', P .. 'omni-serial'))
        call('ZADD', later_of(topic), due, serial .. body)
        call('ZADD', P .. 'omni-scheduled', 'LT', due, topic)
        ring(topic)
        return ''
    end
    return call('XADD', stream_of(topic), '*', 'data', body)
end

local function id_key(topic, task_id) return P .. 'omni-id:' .. #topic .. ':' .. topic .. ':' .. task_id end

-- Append unless the id is known; the entry id, with '=' before it when it is a repeat.
local function append_once(publication, time, window)
    local topic, task_id = publication[1], publication[2]
    if task_id == '' or window == 0 then return append(publication, time) end
    local key = id_key(topic, task_id)
    local known = call('GET', key)
    if known then return '=' .. known end
    local id = append(publication, time)
    call('SET', key, id, 'PX', window)
    return id
end

-- A call {client, slot, number} happens once. The slot keeps the newest number that used it and its
-- reply: a repeat gets the first reply, and a packet that was held up until after its repeat does nothing.
local function replayed(caller)
    local found = call('HGET', P .. 'omni-calls:' .. caller[1], caller[2])
    if not found then return nil end
    local space = found:find(' ', 1, true)
    local number = tonumber(found:sub(1, space - 1))
    if number == caller[3] then
        local reply = found:sub(space + 1)
        -- `append` notes the id as it is, which no packed reply looks like.
        return reply:match('^%d+%-%d+$') and {reply} or cmsgpack.unpack(reply)
    end
    return number > caller[3] and {err = 'ERR this call is over'} or nil
end

local function record(caller, reply)
    local key = P .. 'omni-calls:' .. caller[1]
    local is_new = call('HSET', key, caller[2], string.format('%.0f ', caller[3]) .. cmsgpack.pack(reply))
    if is_new == 1 or caller[3] % 64 == 0 then call('PEXPIRE', key, 86400000) end
    return reply
end

-- Ordered groups: one hash each. 'gate' is "consumer count" while so many fetched entries of that
-- consumer are not claimed yet; 'e:<id>' is the key of a claimed entry; 'k:<key>' is "consumer count",
-- who has claimed entries of the key and how many.
local function count_of(text)
    local consumer, count = text:match('^(.*) (%d+)$')
    return consumer, tonumber(count)
end

local function lower(key, field)
    local consumer, count = count_of(call('HGET', key, field))
    if count > 1 then
        call('HSET', key, field, consumer .. ' ' .. (count - 1))
        return false
    end
    call('HDEL', key, field)
    return true
end

-- An entry of an ordered group leaves its owner's hands; true when that opens the gate.
local function unclaim(group, id, consumer)
    local key = order_of(group)
    local ordering = call('HGET', key, 'e:' .. id)
    if ordering then
        call('HDEL', key, 'e:' .. id)
        lower(key, 'k:' .. ordering)
        return false
    end
    local gate = call('HGET', key, 'gate')
    return gate and count_of(gate) == consumer and lower(key, 'gate')
end

-- Whoever found too little because of a limit or a gate looks again.
local function unclip(topic, group)
    if call('SREM', P .. 'omni-clipped', group) == 1 then ring(topic) end
end

-- Give entries that a consumer holds back to their group, so that anybody takes them; due now.
local function put_back(group, ids, consumer)
    local key, is_ordered = stream_of(topic_of(group)), call('EXISTS', order_of(group)) == 1
    for _, id in ipairs(ids) do
        call('XCLAIM', key, group, WAITING, 0, id, 'JUSTID')
        call('ZADD', waiting_of(group), 0, pad(id))
        if is_ordered then unclaim(group, id, consumer) end
    end
end

-- The same, and tell those who wait.
local function give_back(group, ids, consumer)
    put_back(group, ids, consumer)
    if #ids > 0 then
        call('SREM', P .. 'omni-clipped', group)
        ring(topic_of(group))
    end
end

-- A consumer with this record begins, or ends, to serve its groups.
local function note_served(record_)
    local is_readable, fields = pcall(cjson.decode, record_ or '')
    local groups = is_readable and type(fields) == 'table' and fields['groups']
    if type(groups) ~= 'table' then return end
    local time = now()
    for _, pair in ipairs(groups) do
        call('HSET', P .. 'omni-served', group_of(pair[1], pair[2]), string.format('%.0f', time))
    end
end

-- One more delivery of this entry ended without any outcome. It counts up to `most` crashes, if that is given.
local function note_crash(group, id, most)
    local attempts, crashes = 0, 0
    local tries = call('HGET', tries_of(group), id)
    if tries then attempts, crashes = tries:match('^(%d+) (%d+)$') end
    if most and crashes + 1 > most then return end
    call('HSET', tries_of(group), id, attempts .. ' ' .. (crashes + 1))
end
