#!/usr/bin/env bash
# Signed push deliveries that Refit accepts to disk a second, and what that costs in memory; then the daemon at rest.
#
#   accept.sh [--seconds 5] [--connections 32] [--deliveries FILE] [--idle 10]
#
# Every delivery has its own id and a valid signature, is a row on disk before it is answered, and goes through the queue: the branch's tip is live
# already, so each deployment that a batch makes fetches, sees that, and ends `skipped`. The rows are counted afterwards.
# Prints `refit accept … rows=… peak_rss_kb=…` and `refit idle rss_kb=… cpu_ms=… seconds=…`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=benches/lib.sh
source "$here/lib.sh"

seconds=5 connections=32 deliveries='' idle=10
while (($# > 0)); do
    case $1 in
    --seconds) seconds=$2 ;;
    --connections) connections=$2 ;;
    --deliveries) deliveries=$2 ;;
    --idle) idle=$2 ;;
    *)
        printf 'usage: accept.sh [--seconds N] [--connections N] [--deliveries FILE] [--idle SECONDS]\n' >&2
        exit 64
        ;;
    esac
    shift 2
done

make_site "bench-accept-$$"
cat >>"$work/pipeline.toml" <<'END'
[environments.production]
branch = "main"
[start]
runtime = "process"
command = "exec sleep 3600"
[start.health]
settle = "100ms"
[smoke]
bake = "0s"
END
printf 'nothing\n' >"$work/repository/README"
commit_and_push "Something to have live"
"$refit" --config "$work/pipeline.toml" deploy >"$work/deploy.log" 2>&1 || {
    cat "$work/deploy.log" >&2
    exit 70
}
if [[ -z $deliveries ]]; then
    deliveries=$work/deliveries.tsv
    python3 "$here/make-deliveries.py" --secret "$secret" --repository acme/bench >"$deliveries"
fi

cpu_ticks() { awk '{ print $14 + $15 }' "/proc/$daemon/stat"; }

start_daemon
sleep 2
before=$(cpu_ticks)
sleep "$idle"
after=$(cpu_ticks)
rss=$(awk '/^VmRSS:/ { print $2 }' "/proc/$daemon/status")
printf 'refit idle rss_kb=%d cpu_ms=%d seconds=%d\n' "$rss" $(((after - before) * 1000 / $(getconf CLK_TCK))) "$idle"

wrk --threads 2 --connections "$connections" --duration "${seconds}s" --script "$here/deliveries.lua" \
    "http://127.0.0.1:$http/hooks/github" -- "$deliveries" | tee "$work/wrk" | sed '/^result /d'
peak=$(awk '/^VmHWM:/ { print $2 }' "/proc/$daemon/status")
result=$(sed -n 's/^result //p' "$work/wrk")
rows=$(sqlite3 "file:$work/.refit/refit.db?mode=ro" 'SELECT count(*) FROM deliveries')
printf 'refit accept %s rows=%d peak_rss_kb=%d\n' "$result" "$rows" "$peak"
