#!/usr/bin/env bash
# Backup and restore of a PostgreSQL database against the same by hand, at the same compression, over the same way (`docker exec`).
#
#   data.sh [--megabytes 1024] [--rounds 1]
#
# REFIT_BENCH_DATA_MB sets the size too: what a plain dump of the database has, about. The rows are made in the server. Each round,
# for SQL text and for the custom format: `pg_dump | gzip` (or `pg_dump` alone, which compresses its custom format itself) and
# `refit backup create`; then, into a database that was emptied, `gunzip | psql --single-transaction` (or `pg_restore`) and `refit backup
# restore`. What Refit does besides is in its time: hashes, counts of rows, a manifest, a backup of the emptied database before a restore. Not
# in it: `verify`, which reads the set once more. Every restored database is compared by a hash of all rows.
# Prints a line a measurement and, last, `data … ratio=…` and `memory idle_kb=… backup_kb=… restore_kb=…`, Refit's peak resident memory.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=benches/lib.sh
source "$here/lib.sh"

megabytes=${REFIT_BENCH_DATA_MB:-1024} rounds=1
while (($# > 0)); do
    case $1 in
    --megabytes) megabytes=$2 ;;
    --rounds) rounds=$2 ;;
    *)
        printf 'usage: data.sh [--megabytes N] [--rounds N]\n' >&2
        exit 64
        ;;
    esac
    shift 2
done

make_site "bench-data-$$"
database=refit-bench-data-$$
finish() {
    docker rm -fv "$database" >/dev/null 2>&1 || true
    end_site
}
trap finish EXIT

# shellcheck disable=SC2016 # for the shell in the container
docker run -d --name "$database" refit-test/postgres:15 sh -c '
    install -d -o postgres /run/postgresql
    exec su postgres -c "
        PATH=\$(echo /usr/lib/postgresql/*/bin):\$PATH
        initdb --no-sync --encoding=UTF8 --locale=C --auth=trust /tmp/data >/dev/null
        exec postgres -D /tmp/data -c fsync=off -c listen_addresses= -c shared_buffers=256MB -c max_wal_size=4GB"' >/dev/null
ask() { docker exec "$database" psql -XAtq -v ON_ERROR_STOP=1 -U postgres -d shop -c "$1"; }
for ((attempt = 0; attempt < 300; attempt++)); do
    docker exec "$database" createdb -U postgres shop 2>/dev/null && break
    sleep 0.1
done

# Some 200 bytes a row of a dump, half of which compress well: names and words beside hashes and numbers.
rows=$((megabytes * 1024 * 1024 / 200))
ask "CREATE TABLE orders (id bigint PRIMARY KEY, at timestamptz, customer text, token text, amount numeric, note text);
     INSERT INTO orders SELECT i, timestamptz 'epoch' + i * interval '37 seconds', 'customer ' || i % 5000, md5(i::text) || md5((i * 7)::text),
     i % 99991 / 100.0, repeat('delivered to the door, ', (i % 4)::int) || i FROM generate_series(1, $rows) i;
     CREATE INDEX ON orders (customer); ANALYZE"
state() { ask "SELECT count(*), sum(hashtextextended(o::text, 0)) FROM orders o"; }
before=$(state)
empty() { ask 'DROP TABLE IF EXISTS orders' 2>/dev/null; }

for format in plain custom; do
    cat "$work/pipeline.toml" - >"$work/$format.toml" <<END
[environments.$format]
branch = "main"
[[backup]]
kind = "postgres"
container = "$database"
database = "shop"
user = "postgres"
format = "$format"
compression = "gzip"
verify = "off"
[start]
runtime = "process"
command = "exec sleep 3600"
END
done

# Runs a command and says how long it took, and the most memory that it had: `ms kB`.
measured() {
    python3 - "$@" <<'END'
import resource, subprocess, sys, time
begun = time.monotonic()
with open("/dev/null", "w") as nothing:
    ended = subprocess.run(sys.argv[1:], stdout=nothing)
took = time.monotonic() - begun
print(int(took * 1000), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(ended.returncode)
END
}

by_hand() {
    local begun
    begun=$(now_ms)
    case $1 in
    plain-backup) docker exec "$database" pg_dump -U postgres shop | gzip >"$work/by-hand.sql.gz" ;;
    custom-backup) docker exec "$database" pg_dump -U postgres --format=custom shop >"$work/by-hand.dump" ;;
    plain-restore) gunzip -c "$work/by-hand.sql.gz" | docker exec -i "$database" psql -Xq --single-transaction -v ON_ERROR_STOP=1 -U postgres -d shop >/dev/null ;;
    custom-restore) docker exec -i "$database" pg_restore --single-transaction -U postgres -d shop <"$work/by-hand.dump" ;;
    esac
    echo $(($(now_ms) - begun))
}

same() {
    [[ $(state) == "$before" ]] || {
        printf 'the restored database is another one (%s)\n' "$1" >&2
        exit 70
    }
}

read -r _ idle_kb < <(measured "$refit" --config "$work/plain.toml" backup list)
newest=
declare -A hand mine peak=([backup]=0 [restore]=0)
for ((round = 1; round <= rounds; round++)); do
    for format in plain custom; do
        config=("$refit" --config "$work/$format.toml" backup)
        for what in backup restore; do
            order=(create --reason bench)
            [[ $what == backup ]] || order=(restore "$newest" --reason bench --yes)
            [[ $what == backup ]] || empty
            hand_ms=$(by_hand "$format-$what")
            [[ $what == backup ]] || { same "$format by hand" && empty; }
            read -r took kb < <(measured "${config[@]}" "${order[@]}" 2>"$work/refit.log") || true
            [[ -n ${kb:-} ]] || {
                cat "$work/refit.log" >&2
                exit 70
            }
            if [[ $what == backup ]]; then
                newest=$(find "$work/backups/$app/$format" -mindepth 1 -maxdepth 1 -printf "%f\n" | sort | tail -n 1)
            else
                same "$format by refit"
            fi
            hand[$format-$what]+="$hand_ms "
            mine[$format-$what]+="$took "
            ((kb <= peak[$what])) || peak[$what]=$kb
            printf 'round %d, %s %s: by hand %d ms, refit %d ms, peak %d kB\n' "$round" "$format" "$what" "$hand_ms" "$took" "$kb"
        done
    done
done
for what in plain-backup plain-restore custom-backup custom-restore; do
    # shellcheck disable=SC2086 # a list of numbers
    hand_ms=$(median_of ${hand[$what]}) took=$(median_of ${mine[$what]})
    printf 'data %s megabytes=%d by_hand_ms=%d refit_ms=%d ratio=%s\n' "$what" "$megabytes" "$hand_ms" "$took" \
        "$(awk -v a="$took" -v b="$hand_ms" 'BEGIN { printf "%.2f", a / b }')"
done
printf 'memory idle_kb=%d backup_kb=%d restore_kb=%d\n' "$idle_kb" "${peak[backup]}" "${peak[restore]}"
