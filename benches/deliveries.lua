-- A script for wrk: posts the signed deliveries of a file (benches/make-deliveries.py), each under an id of its own.
--
--     wrk -t2 -c32 -d5s -s deliveries.lua URL -- deliveries.tsv [PREFIX]
--
-- Every thread walks the file from another place. When it has come round it goes on with the same bodies under new ids, so
-- that no id is ever sent twice: what a receiver makes of a commit that it knows is a part of what is measured. PREFIX tells
-- the ids of one run from those of the next.

local threads = 0

function setup(thread)
    thread:set("number", threads)
    threads = threads + 1
end

local deliveries, at, round, prefix = {}, 1, 0, ""

function init(args)
    local file = assert(args[1], "name the file of deliveries after --")
    prefix = args[2] or tostring(os.time())
    for line in io.lines(file) do
        local delivery, signature, body = line:match("^([^\t]+)\t([^\t]+)\t(.+)$")
        table.insert(deliveries, { delivery = delivery, signature = signature, body = body })
    end
    assert(#deliveries > 0, "there is no delivery in " .. file)
    -- Far apart for the few threads that wrk is given here.
    at = 1 + math.floor(#deliveries * ((number * 0.381966) % 1))
    wrk.headers["Content-Type"] = "application/json"
    wrk.headers["User-Agent"] = "GitHub-Hookshot/bench"
    wrk.headers["X-GitHub-Event"] = "push"
end

function request()
    local one = deliveries[at]
    wrk.headers["X-GitHub-Delivery"] = table.concat({ prefix, number, round, one.delivery }, "-")
    wrk.headers["X-Hub-Signature-256"] = one.signature
    at = at + 1
    if at > #deliveries then
        at, round = 1, round + 1
    end
    return wrk.format("POST", nil, nil, one.body)
end

-- Nothing looks at each answer: that would cost the client more than the receiver. Statuses from 400 are counted by wrk.
-- One line for a program to read.
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        "result requests=%d seconds=%.3f per_second=%.0f p50_ms=%.3f p99_ms=%.3f refused=%d socket_errors=%d\n",
        summary.requests, summary.duration / 1e6, summary.requests / (summary.duration / 1e6),
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
