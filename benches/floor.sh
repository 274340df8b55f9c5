#!/usr/bin/env bash
# The floor under a deployment: what the same change costs by hand, with no queue, no journal and no way back.
#
#   floor.sh [--rounds 10]
#
# Each round changes one line of a small Git repository and times, in milliseconds: `docker build` of the new commit, `docker
# stop` and `docker run --init` on the same port, until the app answers with the new line. Prints each round and, last,
# `floor median_ms=… rounds=…`. Whatever it made is removed at the end.
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
# What the engine's own builder does; a client without its newer plugin would only complain.
export DOCKER_BUILDKIT=0

rounds=10
if [[ ${1:-} == --rounds && ${2:-} =~ ^[1-9][0-9]*$ ]]; then
    rounds=$2
elif (($# > 0)); then
    printf 'usage: floor.sh [--rounds N]\n' >&2
    exit 64
fi

name=refit-floor-$$
work=$(mktemp -d)
repository=$work/repository
log=$work/build.log
finish() {
    docker rm -f "$name" >/dev/null 2>&1 || true
    # Every round's image has a tag of its own.
    docker images -q --filter "label=refit.floor=$name" | sort -u | xargs -r docker rmi -f >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
git init -q -b main "$repository"
cd "$repository"
cat >Dockerfile <<END
FROM refit-test/busybox:1
LABEL refit.floor=$name
COPY index.html /var/www/index.html
EXPOSE 8000
CMD ["httpd", "-f", "-p", "8000", "-h", "/var/www"]
END

commit() {
    printf 'version %s\n' "$1" >index.html
    git add -A
    git -c user.name=floor -c user.email=floor@example.org commit -q -m "Version $1"
}

deploy() {
    docker build -q -t "$name:$1" . >/dev/null 2>"$log" || {
        cat "$log" >&2
        return 1
    }
    docker stop "$name" >/dev/null 2>&1 && docker rm "$name" >/dev/null
    docker run -d --init --name "$name" -p "127.0.0.1:$port:8000" "$name:$1" >/dev/null
}

now_ms() { echo $((${EPOCHREALTIME/./} / 1000)); }

# The watcher asks all the time, as users do, and as it does while Refit deploys.
watch_for() { "$here/await-answer.py" "$port" "version $1" >"$work/answered" & }

# The first has no container to stop, and warms the caches: not counted.
commit 0
watch_for 0
deploy 0
wait $!
times=()
for ((round = 1; round <= rounds; round++)); do
    commit "$round"
    watch_for "$round"
    sleep 0.2
    began=$(now_ms)
    deploy "$round"
    wait $!
    took=$(($(cat "$work/answered") - began))
    times+=("$took")
    printf 'round %d: %d ms\n' "$round" "$took"
done
mapfile -t sorted < <(printf '%s\n' "${times[@]}" | sort -n)
median=$(((sorted[(rounds - 1) / 2] + sorted[rounds / 2]) / 2))
printf 'floor median_ms=%d min_ms=%d max_ms=%d rounds=%d\n' "$median" "${sorted[0]}" "${sorted[rounds - 1]}" "$rounds"
