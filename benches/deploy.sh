#!/usr/bin/env bash
# One deployment by Refit, measured like benches/floor.sh: the same app, the same change. The clock runs from the moment that a signed push
# delivery is sent until the public port answers with the new line; in between is everything Refit does: signature, inbox on disk, queue,
# fetch, journal, build, tag, stop, start.
#
#   deploy.sh [--rounds 10] [--strategy recreate|blue-green]
#
# Prints each round and, last, `refit median_ms=… end_median_ms=… rounds=…`; `end` is until the deployment is recorded as succeeded.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=benches/lib.sh
source "$here/lib.sh"

rounds=10 strategy=recreate
while (($# > 0)); do
    case $1=${2:-} in
    --rounds=[1-9]*) rounds=$2 ;;
    --strategy=recreate | --strategy=blue-green) strategy=$2 ;;
    *)
        printf 'usage: deploy.sh [--rounds N] [--strategy recreate|blue-green]\n' >&2
        exit 64
        ;;
    esac
    shift 2
done

make_site "bench-deploy-$$"
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
END
cat >"$work/repository/Dockerfile" <<'END'
FROM refit-test/busybox:1
COPY index.html /var/www/index.html
EXPOSE 8000
CMD ["httpd", "-f", "-p", "8000", "-h", "/var/www"]
END

send() {
    exec 4<>"/dev/tcp/127.0.0.1/$http"
    printf '%s' "$request" >&4
    local status
    read -r status <&4
    exec 4>&-
    [[ $status == *" 202 "* ]] || {
        printf 'the delivery was answered with %s\n' "$status" >&2
        return 1
    }
}

# Everything that a Git host would have ready before it sends.
prepare() {
    printf 'version %s\n' "$1" >"$work/repository/index.html"
    commit_and_push "Version $1"
    local sha body signature
    sha=$(git -C "$work/repository" rev-parse HEAD)
    body='{"ref":"refs/heads/main","before":"0000000000000000000000000000000000000001","after":"'$sha'","repository":{"full_name":"acme/bench"},"pusher":{"name":"bench"},"head_commit":{"id":"'$sha'","message":"x"}}'
    signature=$(SECRET=$secret BODY=$body python3 -c 'import hmac, os; e = os.environb; print(hmac.new(e[b"SECRET"], e[b"BODY"], "sha256").hexdigest())')
    request=$(printf 'POST /hooks/github HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\nx-github-event: push\r\nx-github-delivery: round-%s\r\nx-hub-signature-256: sha256=%s\r\ncontent-length: %s\r\n\r\n%s' \
        "$1" "$signature" "${#body}" "$body")
}

watch_for() { "$here/await-answer.py" "$port" "version $1" >"$work/answered" & }

succeeded() {
    local attempt
    for ((attempt = 0; attempt < 600; attempt++)); do
        [[ $("$refit" --config "$work/pipeline.toml" history --format json --limit 1) == *'"status": "succeeded"'* ]] && return 0
        sleep 0.02
    done
    return 1
}

start_daemon
prepare 0
watch_for 0
send
wait $!
succeeded
times=() ends=()
for ((round = 1; round <= rounds; round++)); do
    prepare "$round"
    watch_for "$round"
    sleep 0.2
    began=$(now_ms)
    send
    wait $! || {
        tail -n 20 "$work/daemon.log" >&2
        exit 70
    }
    took=$(($(cat "$work/answered") - began))
    succeeded
    end=$(($(now_ms) - began))
    times+=("$took")
    ends+=("$end")
    printf 'round %d: %d ms (recorded as succeeded after %d ms)\n' "$round" "$took" "$end"
done
printf 'refit median_ms=%d end_median_ms=%d rounds=%d\n' "$(median_of "${times[@]}")" "$(median_of "${ends[@]}")" "$rounds"
