-- The synchronous facade: a submission is forwarded, and answered when its job has ended.
--
-- `POST /sync/{model}`, and `Prefer: wait=N` where jobs are submitted over REST, come here. The job is read by the
-- functions' own long-poll, again and again until the time is over: nothing behind the gateway knows of it. The answers
-- are those that submit gives to `Prefer: wait` itself (wait.py, submit.py), or the picture for who accepts image/png.
--
-- Functions are asked over sockets of our own and not by ngx.location.capture, which holds a request until its answer is
-- there: nobody would notice that the client has left.

local cjson = require "cjson.safe"

local JOBS = "/api/v1/generation-jobs/"
local PROBLEMS = "https://darkroom.dev/problems/"
local TERMINAL = { completed = true, failed = true, cancelled = true, expired = true }

local CONNECT_S = 5
local PATIENCE_S = 20 -- beyond a wait: the functions give Redis 10 s before it and 10 s after it
local PAUSE_S = 1 -- between two looks at a job, where a function does not wait: it is about to end, or away
local CLIENT_CLOSED = 499
local PART_BYTES = 65536 -- of a body that lies in a file: it is sent in parts, and never in memory whole
local PAUSES_S = { 0.25, 0.5, 1, 2, 2 } -- before each repetition of a request whose function failed; nginx follows 10 redirects
local LONGEST_PAUSE_S = 2 -- a function that asks for a longer one (Retry-After) has its refusal handed back
local FAILED = { [502] = true, [503] = true, [504] = true }

-- What is said of one connection, of a body that is not this one, or of an answer that is not the one we ask for.
local NOT_HANDED_ON = {
    host = true, connection = true, ["keep-alive"] = true, ["proxy-connection"] = true, te = true, trailer = true,
    upgrade = true, expect = true, ["content-length"] = true, ["transfer-encoding"] = true,
    prefer = true, accept = true, ["accept-encoding"] = true, range = true, ["if-range"] = true,
    ["if-match"] = true, ["if-none-match"] = true, ["if-modified-since"] = true, ["if-unmodified-since"] = true,
    ["x-request-id"] = true, ["x-forwarded-for"] = true, ["x-forwarded-host"] = true,
}
local NOT_HANDED_BACK = {
    connection = true, ["keep-alive"] = true, ["transfer-encoding"] = true, ["content-length"] = true,
    server = true, date = true,
}

-- What a picture's request is told of a job that ended otherwise: status, name and title of the problem.
local NO_PICTURE = {
    failed = { 500, "job-failed", "The job has failed" },
    expired = { 504, "job-expired", "The job was not started in time" },
    cancelled = { 409, "job-cancelled", "The job was cancelled" },
    completed = { 500, "no-picture", "The job has no such picture" },
}

-- Headers that the answer with the picture has itself.
local OF_ANSWER = { vary = true, ["cache-control"] = true, ["x-content-type-options"] = true }

local facade = {}
local settings

function facade.configure(given)
    settings = given
end

local function answer(status, headers, body)
    ngx.status = status
    for name, value in pairs(headers) do
        ngx.header[name] = value
    end
    ngx.header["Content-Length"] = #body
    ngx.print(body)
end

local function problem(status, slug, title, detail, members, headers)
    members = members or {}
    members.type, members.title, members.status, members.detail = PROBLEMS .. slug, title, status, detail
    headers = headers or {}
    headers["content-type"] = "application/problem+json"
    answer(status, headers, cjson.encode(members))
end

-- The client's headers as lines of a request to a function.
local function handed_on()
    local lines = {}
    for name, values in pairs(ngx.req.get_headers(0, true)) do
        if not NOT_HANDED_ON[name:lower()] then
            for _, value in ipairs(type(values) == "table" and values or { values }) do
                lines[#lines + 1] = name .. ": " .. (value == true and "" or value) .. "\r\n"
            end
        end
    end
    lines[#lines + 1] = "X-Request-Id: " .. ngx.var.known_id .. "\r\n"
    local before = ngx.var.http_x_forwarded_for
    lines[#lines + 1] = "X-Forwarded-For: " .. (before and before .. ", " or "") .. ngx.var.remote_addr .. "\r\n"
    lines[#lines + 1] = "X-Forwarded-Host: " .. (ngx.var.asked_host or "") .. "\r\n"
    return table.concat(lines)
end

local function read_chunks(socket)
    local chunks = {}
    while true do
        local line, fault = socket:receive()
        local size = line and tonumber(line:match("^%x+") or "", 16)
        if not size then
            return nil, fault or "no chunk"
        end
        if size == 0 then
            return table.concat(chunks) -- trailers go with the connection
        end
        chunks[#chunks + 1], fault = socket:receive(size)
        if fault or not socket:receive() then
            return nil, fault or "half a chunk"
        end
    end
end

local function send_body(socket, body)
    if body.text then
        return socket:send(body.text)
    end
    local file, fault = io.open(body.path, "rb")
    if not file then
        return nil, fault
    end
    local done = true
    while done do
        local part = file:read(PART_BYTES)
        if not part then
            break
        end
        done, fault = socket:send(part)
    end
    file:close()
    return done, fault
end

-- The answer of a function to one request: its status, headers (with small letters) and body; or nil, why, and whether
-- the request was sent. `body`, if any, is one of body_of_request.
local function ask(name, method, target, headers, body, patience_s)
    local to = settings.functions[name]
    local socket = ngx.socket.tcp()
    socket:settimeouts(CONNECT_S * 1000, PATIENCE_S * 1000, patience_s * 1000)
    local done, fault = socket:connect(to.address, to.port)
    if not done then
        return nil, fault
    end
    local length = body and "Content-Length: " .. body.size .. "\r\n" or ""
    done, fault = socket:send {
        method, " ", target, " HTTP/1.1\r\nHost: ", to.host, "\r\nConnection: close\r\n", length, headers, "\r\n",
    }
    if done and body then
        done, fault = send_body(socket, body)
    end
    if not done then
        return nil, fault, true
    end
    local got = { headers = {} }
    local line
    line, fault = socket:receive()
    got.status = line and tonumber(line:match("^HTTP/1%.%d (%d%d%d)"))
    if not got.status then
        return nil, fault or "no HTTP", true
    end
    while true do
        line, fault = socket:receive()
        if not line then
            return nil, fault, true
        end
        local header, value = line:match("^([^:]+):%s*(.-)%s*$")
        if not header then
            break
        end
        got.headers[header:lower()] = value
    end
    if got.headers["transfer-encoding"] then
        got.body, fault = read_chunks(socket)
    else
        got.body, fault = socket:receive(tonumber(got.headers["content-length"]) or "*a")
    end
    socket:close()
    return got.body and got, fault, true
end

local function away(fault)
    ngx.log(ngx.ERR, "submit does not answer: ", fault)
    local is_late = fault == "timeout"
    ngx.exit(is_late and 504 or 502)
end

-- The body of the request: its size, and its text, or the file that nginx has put it into.
local function body_of_request()
    ngx.req.read_body()
    local text = ngx.req.get_body_data()
    local path = not text and ngx.req.get_body_file()
    if not path then
        return { text = text or "", size = #(text or "") }
    end
    local file = assert(io.open(path, "rb"))
    local size = file:seek("end")
    file:close()
    return { path = path, size = size }
end

-- A request may be held for minutes: its body is needed no more once it has been submitted.
local function drop_body(body)
    if body.path then
        ngx.req.set_body_data("") -- closes the file
        os.remove(body.path)
    end
end

-- How long to wait before a request that failed so is repeated; nil where it is not. `repeats` were made already.
local function pause_before_repeat(repeats, retry_after)
    local asked_s = tonumber(retry_after) or 0
    local pause_s = math.max(PAUSES_S[repeats + 1] or math.huge, asked_s)
    local spent_s = ngx.now() - ngx.req.start_time()
    if asked_s <= LONGEST_PAUSE_S and spent_s + pause_s <= settings.retry_s and not ngx.worker.exiting() then
        return pause_s
    end
end

-- The elements of header values that are lists, without spaces around them; a comma in quotes does not part them.
local function elements(values)
    local found, current, in_quotes, is_escaped = {}, {}, false, false
    for letter in (table.concat(values, ",") .. ","):gmatch(".") do
        if letter == "," and not in_quotes then
            found[#found + 1] = table.concat(current):match("^%s*(.-)%s*$")
            current = {}
        else
            current[#current + 1] = letter
            if is_escaped then
                is_escaped = false
            elseif in_quotes and letter == "\\" then
                is_escaped = true
            elseif letter == '"' then
                in_quotes = not in_quotes
            end
        end
    end
    return found
end

local function header_values(name)
    local values = ngx.req.get_headers(0)[name]
    return type(values) == "table" and values or { values }
end

-- The seconds that `Prefer` asks for, or nil: the first `wait` counts, and one that cannot be read is none (RFC 7240).
local function preferred_s()
    for _, element in ipairs(elements(header_values("prefer"))) do
        local name, rest = element:match("^%s*([^=;]-)%s*=[ \t]*(.*)$")
        if (name or element:match("^[^;]*"):match("^%s*(.-)%s*$")):lower() == "wait" then
            local seconds, after = (rest or ""):match('^"(%d+)"[ \t]*(.*)$')
            if not seconds then
                seconds, after = (rest or ""):match("^(%d+)[ \t]*(.*)$")
            end
            local is_whole = seconds and (after == "" or after:sub(1, 1) == ";")
            return is_whole and tonumber(seconds) or nil
        end
    end
end

-- Whether the client would rather have the picture than JSON: `Accept` names it, and JSON not with a higher weight.
local function wants_picture()
    local weights = { picture = 0, json = 0 }
    for _, element in ipairs(elements(header_values("accept"))) do
        local range = element:lower():match("^[^;]*"):match("^%s*(.-)%s*$")
        local weight = tonumber(element:lower():match(";%s*q%s*=%s*([%d.]+)")) or 1
        if range == "image/png" or range == "image/*" then
            weights.picture = math.max(weights.picture, weight)
        elseif range == "application/json" or range == "application/*" then
            weights.json = math.max(weights.json, weight)
        end
    end
    return weights.picture > 0 and weights.picture >= weights.json
end

-- The job's view, decoded and as it came, once it has ended; nil when the time is over, or nothing is gained by waiting.
local function wait_for_end(job, wait_s, headers)
    local deadline = ngx.now() + wait_s
    while true do
        local began = ngx.now()
        local asked_s = math.max(0, math.min(settings.poll_s, math.ceil(deadline - began)))
        local target = JOBS .. job .. "?wait=" .. asked_s
        local got, fault = ask("jobs", "GET", target, headers, nil, asked_s + PATIENCE_S)
        if not got then
            ngx.log(ngx.ERR, "jobs does not answer: ", fault)
        elseif got.status == 200 then
            local view = cjson.decode(got.body)
            if view and TERMINAL[view.state] then
                return view, got.body
            end
        elseif got.status < 500 and got.status ~= 429 then
            return nil
        end
        local left_s = deadline - ngx.now()
        if left_s <= 0 or ngx.worker.exiting() then
            return nil
        end
        local rest_s = PAUSE_S - (ngx.now() - began)
        if rest_s > 0 then
            ngx.sleep(math.min(rest_s, left_s))
        end
    end
end

local function answer_with_picture(view, headers)
    local artifact = view.artifacts[1]
    local picture = artifact and artifact.media_type == "image/png" and artifact.url:match("^%a+://[^/]+.-(/artifacts/.*)$")
    headers["content-type"] = nil
    if view.state == "completed" and picture then
        for name, value in pairs(headers) do
            if not OF_ANSWER[name] and not name:match("^access%-control%-") then -- the picture's answer has its own
                ngx.header[name] = value
            end
        end
        -- The link is its own permission. Only its path is followed, and to jobs.
        ngx.var.picture = picture
        return ngx.exec("@picture")
    end
    local status, slug, title = unpack(NO_PICTURE[view.state])
    local why = type(view.error) == "table" and view.error.message
    local members = { job_id = view.id, state = view.state, error = view.error }
    problem(status, slug, title, why or title, members, headers)
end

-- The answer of submit, which is asked again where it fails and a repetition makes no second job: nothing was sent, or
-- the client has named the submission.
local function submit(target, headers, body, has_left)
    local repeats = 0
    while true do
        local got, fault, was_sent = ask("submit", "POST", target, headers, body, PATIENCE_S)
        local may_repeat = not was_sent or ngx.var.http_idempotency_key
        if has_left() or not may_repeat or (got and not FAILED[got.status]) then
            return got, fault
        end
        local pause_s = pause_before_repeat(repeats, got and got.headers["retry-after"])
        if not pause_s then
            return got, fault
        end
        repeats = repeats + 1
        ngx.sleep(pause_s)
    end
end

-- Forward the request to submit as one for `target`, and answer it when the job has ended.
local function hold(target, preference_s)
    local wait_s = math.min(preference_s or settings.wait_s, settings.wait_s)
    local body = body_of_request()
    local headers = handed_on()
    local job, has_left

    local function leave()
        if job and settings.cancel then
            ask("jobs", "POST", JOBS .. job .. "/cancel", headers, nil, PATIENCE_S)
        end
        ngx.exit(CLIENT_CLOSED)
    end
    ngx.on_abort(function()
        has_left = true
        if job then -- before that, submit decides first whether there is one
            leave()
        end
    end)

    local taken, fault = submit(target, headers, body, function() return has_left end)
    drop_body(body)
    body = nil
    if not taken then
        return away(fault)
    end
    local slip = taken.status < 300 and cjson.decode(taken.body)
    local told = {}
    for name, value in pairs(taken.headers) do
        if not NOT_HANDED_BACK[name] then
            told[name] = value
        end
    end
    if not slip then
        return answer(taken.status, told, taken.body)
    end
    job = slip.id
    ngx.var.job = job
    if has_left then
        return leave()
    end
    if preference_s then
        told["preference-applied"] = string.format("wait=%d", wait_s)
    end
    local view, text = wait_for_end(job, wait_s, headers)
    if not view then
        answer(202, told, taken.body)
    elseif wants_picture() then
        answer_with_picture(view, told)
    else
        answer(200, told, text)
    end
end

-- Whether a repetition of the request changes nothing: a reading, an event (its id is its key), a named submission.
local function is_repeatable(is_submission)
    local method = ngx.req.get_method()
    if method == "GET" or method == "HEAD" then
        return true
    end
    return is_submission and (ngx.var.uri == "/" or (ngx.var.http_idempotency_key or "") ~= "")
end

-- In front of every request: one that prefers to wait for the job that it submits is held here.
function facade.divert()
    local is_submission = ngx.var["function"] == "submit"
    if is_submission and ngx.var.uri ~= "/" and ngx.var.http_prefer and preferred_s() then
        ngx.exec("@facade")
    elseif settings.retry_s > 0 and is_repeatable(is_submission) then
        ngx.exec("@repeatable")
    end
end

-- A repeatable request whose function has failed: it is repeated after a pause, or for the last time.
function facade.again()
    local statuses = ngx.var.upstream_status
    if not statuses then -- no function was asked
        return ngx.exec("@too_many")
    end
    local repeats = tonumber(ngx.var.repeats)
    local pause_s = pause_before_repeat(repeats, ngx.var.upstream_http_retry_after)
    if pause_s then
        ngx.var.repeats = repeats + 1
        ngx.sleep(pause_s)
    elseif statuses:match("%d+$") == "504" then
        ngx.exec("@late")
    else
        ngx.exec("@last")
    end
end

function facade.prefer()
    hold(ngx.var.request_uri, preferred_s())
end

function facade.sync()
    if ngx.req.get_method() == "OPTIONS" and ngx.var.http_access_control_request_method then
        return ngx.exec("@preflight")
    end
    if ngx.req.get_method() ~= "POST" then
        local detail = ngx.var.uri .. " does not take " .. ngx.req.get_method()
        local title = "The resource does not take this method"
        return problem(405, "method-not-allowed", title, detail, nil, { allow = "POST" })
    end
    if not ngx.var.uri:match("^/sync/[^/]+/?$") then
        return ngx.exit(404)
    end
    hold(ngx.var.request_uri:sub(#"/sync" + 1), preferred_s())
end

return facade
