-- The synchronous facade: it forwards a submission and responds when the job has finished.
--
-- It serves `POST /sync/{model}`, and `Prefer: wait=N` of submissions over REST. It repeats the functions' long-poll until
-- the wait is over; the functions do not know of the gateway. The responses are those of submit to `Prefer: wait`
-- (streams/wait.py, submit.py), or the image for a client that accepts image/png.
--
-- Requests to functions use sockets and not ngx.location.capture, which blocks until the response is complete: a closed
-- client connection would go unnoticed.

local cjson = require "cjson.safe"

local JOBS = "/api/v1/generation-jobs/"
local PROBLEMS = "https://darkroom.dev/problems/"
local TERMINAL = { completed = true, failed = true, cancelled = true, expired = true }

local CONNECT_S = 5
local TIMEOUT_S = 20 -- in addition to a wait: the functions allow Redis 10 s before and 10 s after it
local PAUSE_S = 1 -- between two polls of a job, if a function does not wait because it shuts down or is unavailable
local CLIENT_CLOSED = 499
local PART_BYTES = 65536 -- of a body that is in a file: it is sent in parts, and is never completely in memory
local PAUSES_S = { 0.25, 0.5, 1, 2, 2 } -- before each repetition of a request whose function failed; nginx follows 10 redirects
local LONGEST_PAUSE_S = 2 -- with a longer Retry-After the function's refusal is returned
local FAILED = { [502] = true, [503] = true, [504] = true }

-- Headers of one connection, of the body, or of a conditional or partial response.
local NOT_FORWARDED = {
    host = true, connection = true, ["keep-alive"] = true, ["proxy-connection"] = true, te = true, trailer = true,
    upgrade = true, expect = true, ["content-length"] = true, ["transfer-encoding"] = true,
    prefer = true, accept = true, ["accept-encoding"] = true, range = true, ["if-range"] = true,
    ["if-match"] = true, ["if-none-match"] = true, ["if-modified-since"] = true, ["if-unmodified-since"] = true,
    ["x-request-id"] = true, ["x-forwarded-for"] = true, ["x-forwarded-host"] = true,
}
local NOT_RETURNED = {
    connection = true, ["keep-alive"] = true, ["transfer-encoding"] = true, ["content-length"] = true,
    server = true, date = true,
}

-- The problem for a request for an image whose job finished otherwise: status, slug and title.
local NO_PICTURE = {
    failed = { 500, "job-failed", "The job has failed" },
    expired = { 504, "job-expired", "The job was not started in time" },
    cancelled = { 409, "job-cancelled", "The job was cancelled" },
    completed = { 500, "no-picture", "The job has no such picture" },
}

-- Headers that the response with the image sets itself.
local OF_IMAGE = { vary = true, ["cache-control"] = true, ["x-content-type-options"] = true }

local facade = {}
local settings

function facade.configure(given)
    settings = given
end

local function respond(status, headers, body)
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
    respond(status, headers, cjson.encode(members))
end

-- The client's headers as lines of a request to a function.
local function forwarded_headers()
    local lines = {}
    for name, values in pairs(ngx.req.get_headers(0, true)) do
        if not NOT_FORWARDED[name:lower()] then
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
            return table.concat(chunks) -- trailers are ignored, since the connection is closed
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

-- The response of a function to one request: its status, headers (with lower-case names) and body; or nil, the fault, and
-- whether the request was sent. `body`, if any, is a result of body_of_request.
local function send_request(name, method, target, headers, body, timeout_s)
    local to = settings.functions[name]
    local socket = ngx.socket.tcp()
    socket:settimeouts(CONNECT_S * 1000, TIMEOUT_S * 1000, timeout_s * 1000)
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

local function unavailable(fault)
    ngx.log(ngx.ERR, "submit does not respond: ", fault)
    local is_late = fault == "timeout"
    ngx.exit(is_late and 504 or 502)
end

-- The body of the request: its size, and its text or the file that nginx has written it to.
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

-- A request can be held for minutes: its body is not needed after the submission.
local function drop_body(body)
    if body.path then
        ngx.req.set_body_data("") -- closes the file
        os.remove(body.path)
    end
end

-- The pause before a failed request is repeated; nil if it is not repeated. `repeats`: the repetitions so far.
local function pause_before_repeat(repeats, retry_after)
    local requested_s = tonumber(retry_after) or 0
    local pause_s = math.max(PAUSES_S[repeats + 1] or math.huge, requested_s)
    local spent_s = ngx.now() - ngx.req.start_time()
    if requested_s <= LONGEST_PAUSE_S and spent_s + pause_s <= settings.retry_s and not ngx.worker.exiting() then
        return pause_s
    end
end

-- The elements of header values that are lists, without surrounding spaces; a comma in quotes is no separator.
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

-- The seconds of `Prefer`, or nil: the first `wait` counts, and an invalid one is ignored (RFC 7240).
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

-- Whether the client prefers the image to JSON: `Accept` names it, and JSON without a higher weight.
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

-- The finished job's view, decoded and as received; nil when the wait is over, or when waiting is pointless.
local function wait_for_end(job, wait_s, headers)
    local deadline = ngx.now() + wait_s
    while true do
        local began = ngx.now()
        local requested_s = math.max(0, math.min(settings.poll_s, math.ceil(deadline - began)))
        local target = JOBS .. job .. "?wait=" .. requested_s
        local got, fault = send_request("jobs", "GET", target, headers, nil, requested_s + TIMEOUT_S)
        if not got then
            ngx.log(ngx.ERR, "jobs does not respond: ", fault)
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

local function respond_with_picture(view, headers)
    local artifact = view.artifacts[1]
    local picture = artifact and artifact.media_type == "image/png" and artifact.url:match("^%a+://[^/]+.-(/artifacts/.*)$")
    headers["content-type"] = nil
    if view.state == "completed" and picture then
        for name, value in pairs(headers) do
            if not OF_IMAGE[name] and not name:match("^access%-control%-") then -- the image's response has its own
                ngx.header[name] = value
            end
        end
        -- The signed link is the authorization. Only its path is used, and only with the function jobs.
        ngx.var.picture = picture
        return ngx.exec("@picture")
    end
    local status, slug, title = unpack(NO_PICTURE[view.state])
    local why = type(view.error) == "table" and view.error.message
    local members = { job_id = view.id, state = view.state, error = view.error }
    problem(status, slug, title, why or title, members, headers)
end

-- The response of submit. A failed request is repeated if that creates no second job: nothing was sent, or the submission
-- has an idempotency key.
local function submit(target, headers, body, is_closed)
    local repeats = 0
    while true do
        local got, fault, was_sent = send_request("submit", "POST", target, headers, body, TIMEOUT_S)
        local may_repeat = not was_sent or ngx.var.http_idempotency_key
        if is_closed() or not may_repeat or (got and not FAILED[got.status]) then
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

-- Forward the request to submit as one for `target`, and respond when the job has finished.
local function hold(target, preference_s)
    local wait_s = math.min(preference_s or settings.wait_s, settings.wait_s)
    local body = body_of_request()
    local headers = forwarded_headers()
    local job, is_closed

    local function abandon()
        if job and settings.cancel then
            send_request("jobs", "POST", JOBS .. job .. "/cancel", headers, nil, TIMEOUT_S)
        end
        ngx.exit(CLIENT_CLOSED)
    end
    ngx.on_abort(function()
        is_closed = true
        if job then -- before that, submit decides whether there is a job
            abandon()
        end
    end)

    local response, fault = submit(target, headers, body, function() return is_closed end)
    drop_body(body)
    body = nil
    if not response then
        return unavailable(fault)
    end
    local accepted = response.status < 300 and cjson.decode(response.body)
    local returned = {}
    for name, value in pairs(response.headers) do
        if not NOT_RETURNED[name] then
            returned[name] = value
        end
    end
    if not accepted then
        return respond(response.status, returned, response.body)
    end
    job = accepted.id
    ngx.var.job = job
    if is_closed then
        return abandon()
    end
    if preference_s then
        returned["preference-applied"] = string.format("wait=%d", wait_s)
    end
    local view, text = wait_for_end(job, wait_s, headers)
    if not view then
        respond(202, returned, response.body)
    elseif wants_picture() then
        respond_with_picture(view, returned)
    else
        respond(200, returned, text)
    end
end

-- Whether the request is idempotent: a read, an event (by its id), a submission with an idempotency key.
local function is_repeatable(is_submission)
    local method = ngx.req.get_method()
    if method == "GET" or method == "HEAD" then
        return true
    end
    return is_submission and (ngx.var.uri == "/" or (ngx.var.http_idempotency_key or "") ~= "")
end

-- Runs before every request: a submission that prefers to wait is held here.
function facade.divert()
    local is_submission = ngx.var["function"] == "submit"
    if is_submission and ngx.var.uri ~= "/" and ngx.var.http_prefer and preferred_s() then
        ngx.exec("@facade")
    elseif settings.retry_s > 0 and is_repeatable(is_submission) then
        ngx.exec("@repeatable")
    end
end

-- A repeatable request whose function failed: it is repeated after a pause, or for the last time.
function facade.again()
    local statuses = ngx.var.upstream_status
    if not statuses then -- no request was sent to a function
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
        local title = "The resource does not support this method"
        return problem(405, "method-not-allowed", title, detail, nil, { allow = "POST" })
    end
    if not ngx.var.uri:match("^/sync/[^/]+/?$") then
        return ngx.exit(404)
    end
    hold(ngx.var.request_uri:sub(#"/sync" + 1), preferred_s())
end

return facade
