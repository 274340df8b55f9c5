#!/usr/bin/env bash
# Measures Debian's `webhook` (adnanh/webhook) on its cheapest path: a push arrives, its rule does not match, nothing is
# started and nothing is kept. That is the rate Refit is held against when it checks a signature and writes to disk.
#
#   webhook-peer.sh [--seconds 5] [--connections 32] [--deliveries FILE]
#
# Prints `peer webhook per_second=… peak_rss_kb=… …` as its last line. Everything happens on loopback and ends by itself.
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)

seconds=5 connections=32 deliveries=
while (($# > 0)); do
    case $1 in
    --seconds) seconds=$2 ;;
    --connections) connections=$2 ;;
    --deliveries) deliveries=$2 ;;
    *)
        printf 'usage: webhook-peer.sh [--seconds N] [--connections N] [--deliveries FILE]\n' >&2
        exit 64
        ;;
    esac
    shift 2
done
for program in webhook wrk python3 curl; do
    command -v "$program" >/dev/null || {
        printf '%s is not installed: run scripts/setup-machine bench\n' "$program" >&2
        exit 69
    }
done

work=$(mktemp -d)
peer=
finish() {
    [[ -z $peer ]] || { kill "$peer" && wait "$peer"; } 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

if [[ -z $deliveries ]]; then
    deliveries=$work/deliveries.tsv
    python3 "$here/make-deliveries.py" --secret bench >"$deliveries"
fi

# The rule reads the body, as a rule for a branch does, and asks for a branch that is never pushed.
cat >"$work/hooks.json" <<'END'
[{
  "id": "push",
  "execute-command": "/bin/true",
  "trigger-rule": {"match": {"type": "value", "value": "refs/heads/never", "parameter": {"source": "payload", "name": "ref"}}}
}]
END

# A port that is free now; nobody else is expected to take it before the program does.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
webhook -hooks "$work/hooks.json" -ip 127.0.0.1 -port "$port" >"$work/log" 2>&1 &
peer=$!
url=http://127.0.0.1:$port/hooks/push
for ((attempt = 0; attempt < 100; attempt++)); do
    curl -s -o /dev/null "http://127.0.0.1:$port/" && break
    if ! kill -0 "$peer" 2>/dev/null; then
        cat "$work/log" >&2
        exit 69
    fi
    sleep 0.1
done

# What is measured is a push that was understood and not wanted, not a 404.
answer=$(curl -s -w ' %{http_code}' -H 'Content-Type: application/json' --data-binary "$(head -n 1 "$deliveries" | cut -f3)" "$url")
[[ $answer == *"not satisfied"*200 ]] || {
    printf 'the peer answers otherwise than expected: %s\n' "$answer" >&2
    exit 70
}

wrk --threads 2 --connections "$connections" --duration "${seconds}s" --script "$here/deliveries.lua" "$url" -- \
    "$deliveries" | tee "$work/wrk" | sed '/^result /d'
peak=$(awk '/^VmHWM:/ { print $2 }' "/proc/$peer/status")
result=$(sed -n 's/^result //p' "$work/wrk")
[[ -n $result ]] || {
    printf 'wrk printed no result\n' >&2
    exit 70
}
printf 'peer webhook %s peak_rss_kb=%s\n' "$result" "$peak"
