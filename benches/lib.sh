# Shared by the benches: a site with a daemon on loopback, and its end. Source it; it sets `work` and a trap.
# shellcheck shell=bash
export LC_ALL=C

refit=${REFIT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/target/release/refit}
# shellcheck disable=SC2034 # for those who source this
secret=correct-horse-battery
work=$(mktemp -d)
daemon=

end_site() {
    [[ -z $daemon ]] || { kill "$daemon" && wait "$daemon"; } 2>/dev/null || true
    docker ps -aq --filter "label=refit.app=$app" 2>/dev/null | xargs -r docker rm -f >/dev/null 2>&1 || true
    docker images -q --filter "label=refit.app=$app" 2>/dev/null | sort -u | xargs -r docker rmi -f >/dev/null 2>&1 || true
    # Supervisors of the process runtime outlive the daemon on purpose: they are ended by the directory they work in.
    local pid
    # So do gates.
    for pid in $(pgrep -f "supervise $work" || true) $(pgrep -f "gate --state-dir $work" || true); do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap end_site EXIT

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# make_site NAME: an empty repository with its bare origin, and the first half of pipeline.toml.
make_site() {
    app=$1
    http=$(free_port)
    git init -q --bare -b main "$work/origin.git"
    git init -q -b main "$work/repository"
    printf '%s' "$secret" >"$work/secret"
    cat >"$work/pipeline.toml" <<END
[server]
listen = "127.0.0.1:$http"
reconcile = "0s"
[webhooks.github]
secret = [{ file = "secret" }]
[app]
name = "$app"
repository = "origin.git"
full_name = "acme/bench"
END
}

# commit_and_push MESSAGE
commit_and_push() {
    git -C "$work/repository" add -A
    git -C "$work/repository" -c user.name=bench -c user.email=bench@example.org commit -q -m "$1"
    git -C "$work/repository" push -q "$work/origin.git" HEAD:main
}

start_daemon() {
    "$refit" --config "$work/pipeline.toml" serve >"$work/daemon.log" 2>&1 &
    daemon=$!
    local attempt
    for ((attempt = 0; attempt < 200; attempt++)); do
        curl -sf -o /dev/null "http://127.0.0.1:$http/_deploy/health" && return 0
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.05
    done
    cat "$work/daemon.log" >&2
    return 1
}

now_ms() { echo $((${EPOCHREALTIME/./} / 1000)); }

# median_of NUMBER…
median_of() {
    local sorted
    mapfile -t sorted < <(printf '%s\n' "$@" | sort -n)
    echo $(((sorted[($# - 1) / 2] + sorted[$# / 2]) / 2))
}
