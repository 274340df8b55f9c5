#!/usr/bin/env bash
# From the moment that a new version dies after the switch, while it is watched, until the old version answers again; against a person
# with two containers who stops the one and starts the other at once.
#
#   rollback.sh [--rounds 10] [--strategy recreate|blue-green]
#
# Each round does both, so that a machine that slows down meets both. Floor: `docker stop` of the new container and `docker start` of the old
# one, which both exist. Refit: the app of a deployment that is in its bake time is killed, and everything else is Refit's: that it notices, the
# journal, removing the candidate, starting the old version. The clock stops when the public port gives the old version's line.
#
# With blue-green, then also from `refit rollback` to the old version answering, where that is kept warm and where it stands stopped; the app takes
# half a second to start. The rest of either is the safety checks and the state before, which is kept.
#
# Prints each round and, last, `floor median_ms=… refit median_ms=… rounds=…`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=benches/lib.sh
source "$here/lib.sh"
export DOCKER_BUILDKIT=0

rounds=10 strategy=recreate
while (($# > 0)); do
    case $1=${2:-} in
    --rounds=[1-9]*) rounds=$2 ;;
    --strategy=recreate | --strategy=blue-green) strategy=$2 ;;
    *)
        printf 'usage: rollback.sh [--rounds N] [--strategy recreate|blue-green]\n' >&2
        exit 64
        ;;
    esac
    shift 2
done

make_site "bench-rollback-$$"
port=$(free_port)
cat >>"$work/pipeline.toml" <<END
[environments.production]
branch = "main"
port = $port
bind = "127.0.0.1"
[start]
strategy = "$strategy"
container_port = 8000
init = true
[start.health]
path = "/"
[smoke]
bake = "0s"
[[smoke.check]]
http = "/"
END
cat >"$work/repository/Dockerfile" <<'END'
FROM refit-test/busybox:1
COPY index.html /var/www/index.html
EXPOSE 8000
CMD ["httpd", "-f", "-p", "8000", "-h", "/var/www"]
END

failed() {
    printf '%s\n' "$1" >&2
    tail -n 20 "$work/daemon.log" >&2
    exit 70
}

# settle STATUS: waits until the newest deployment has it (or, for `smoke`, until that stage runs).
settle() {
    local attempt newest
    for ((attempt = 0; attempt < 1000; attempt++)); do
        newest=$("$refit" --config "$work/pipeline.toml" history --format json --limit 1)
        if python3 -c 'import json, sys
d = json.loads(sys.argv[2])[0]
smoke = next(s["status"] for s in d["stages"] if s["name"] == "smoke")
sys.exit(not (d["status"] == sys.argv[1] or sys.argv[1] == "smoke" and smoke == "running"))' "$1" "$newest"; then
            return 0
        fi
        sleep 0.05
    done
    failed "no deployment came to $1: $newest"
}

deploy() {
    printf 'version %s\n' "$1" >"$work/repository/index.html"
    commit_and_push "Version $1"
    "$refit" --config "$work/pipeline.toml" deploy --detach >/dev/null
}

# watch_for TEXT PORT
watch_for() { "$here/await-answer.py" "$2" "$1" >"$work/answered" & }

# The floor's pair: made beforehand, as the old version's container is kept by Refit.
floor_port=$(free_port)
make_pair() {
    local version
    for version in old new; do
        printf 'version %s\n' "$version" >"$work/repository/index.html"
        docker build -q -t "$app:floor-$version" --label "refit.app=$app" "$work/repository" >/dev/null 2>&1
        docker create --init --restart unless-stopped --name "$app-$version" --label "refit.app=$app" \
            -p "127.0.0.1:$floor_port:8000" "$app:floor-$version" >/dev/null
    done
}

by_hand() {
    docker start "$app-new" >/dev/null
    watch_for "version new" "$floor_port"
    wait $!
    watch_for "version old" "$floor_port"
    sleep 0.2
    began=$(now_ms)
    docker stop "$app-new" >/dev/null
    docker start "$app-old" >/dev/null
    wait $!
    took=$(($(cat "$work/answered") - began))
    docker stop "$app-old" >/dev/null
}

# The app itself, below the container's init: its end is the container's, as it is when an app crashes.
app_of() {
    local init
    init=$(docker inspect --format '{{.State.Pid}}' "$1")
    pgrep -P "$init"
}

by_refit() {
    deploy "bad $1"
    settle smoke
    # The first round of checks is over, and the next is a while away, as when an app dies at some time.
    sleep 1.4
    # The newest: by blue-green the old one runs beside it.
    local name
    name=$(docker ps --filter "label=refit.app=$app" --filter "label=refit.role=app" --format '{{.Names}}' | head -n 1)
    local pid
    pid=$(app_of "$name")
    watch_for "version good" "$port"
    sleep 0.2
    began=$(now_ms)
    kill -9 "$pid"
    wait $! || failed "the old version did not come back"
    took=$(($(cat "$work/answered") - began))
    settle rolled_back
}

restart() {
    kill "$daemon"
    wait "$daemon" || true
    sed -i "$@" "$work/pipeline.toml"
    start_daemon
}

newest() {
    "$refit" --config "$work/pipeline.toml" history --format json --limit 1 |
        python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["id"])'
}

# asked TARGET TEXT: a person goes back to deployment TARGET, which answers TEXT.
asked() {
    watch_for "$2" "$port"
    sleep 0.2
    began=$(now_ms)
    "$refit" --config "$work/pipeline.toml" rollback --to "$1" --force --reason bench >/dev/null 2>&1
    wait $! || failed "deployment $1 did not come back"
    took=$(($(cat "$work/answered") - began))
}

# Two good versions of an app that takes a while, each gone back to from the other.
by_a_person() {
    restart -e 's/bake = "5m"/bake = "0s"/' -e 's/^\[start\]$/[start]\nkeep_warm = "1h"/'
    sed -i 's/^CMD .*/CMD ["sh", "-c", "sleep 0.5; exec httpd -f -p 8000 -h \/var\/www"]/' "$work/repository/Dockerfile"
    local version round id=() warm=() cold=()
    for version in a b; do
        deploy "$version"
        settle succeeded
        id+=("$(newest)")
    done
    for ((round = 1; round <= rounds; round++)); do
        # Now `b` is live and `a` is warm.
        asked "${id[0]}" "version a"
        warm+=("$took")
        docker stop "refit-$app-production-${id[1]}" >/dev/null
        asked "${id[1]}" "version b"
        cold+=("$took")
        printf 'asked, round %d: warm %d ms, cold %d ms\n' "$round" "${warm[-1]}" "${cold[-1]}"
    done
    printf 'asked warm_median_ms=%d cold_median_ms=%d rounds=%d\n' "$(median_of "${warm[@]}")" "$(median_of "${cold[@]}")" "$rounds"
}

make_pair
start_daemon
deploy good
settle succeeded
restart 's/bake = "0s"/bake = "5m"/'

floor=() ours=()
for ((round = 1; round <= rounds; round++)); do
    by_hand
    floor+=("$took")
    by_refit "$round"
    ours+=("$took")
    printf 'round %d: by hand %d ms, refit %d ms\n' "$round" "${floor[-1]}" "${ours[-1]}"
done
[[ $strategy == recreate ]] || by_a_person
printf 'floor median_ms=%d refit median_ms=%d rounds=%d\n' "$(median_of "${floor[@]}")" "$(median_of "${ours[@]}")" "$rounds"
