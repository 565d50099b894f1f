#!/usr/bin/env bash
# An evaluation every night, for cron: rerank, measure, and compare with the last night that passed.
#
#     PATH=/opt/batchscore/.venv/bin:/usr/bin:/bin
#     30 2 * * *  cd /data/search && /opt/batchscore/examples/cron_eval.sh
#
# cron mails what is printed. A good night prints nothing. A bad one prints a line that says what is wrong, and a second
# one with the hint if the error has one, and ends with the exit code of the command that failed: 9 if the ranking is not
# good enough; docs/cron.md has the others. It may be started again at any time: what is finished is found, and what was
# killed is resumed.
set -euo pipefail

JOB=${JOB:-night.toml}      # options of rerank and eval; variables like BATCHSCORE_MODEL override it
NIGHTS=${NIGHTS:-nights}    # gets a folder for each night, and a store of what the model made of texts, which all share
DAY=${DAY:-$(date +%F)}
MAX_DROP=${MAX_DROP:-0.01}  # how far a measure may fall below that of the last night that passed
METRICS=${METRICS:-}        # folder of Prometheus's textfile collector, such as /var/lib/node_exporter/textfile_collector

night=$NIGHTS/$DAY
mkdir -p "$night"
exec 9>"$NIGHTS/lock" # held until this script and all that it started have ended
if ! flock --nonblock 9; then
    echo "batchscore $DAY: another night is still running in $NIGHTS"
    exit 75
fi
: >"$night/log.txt"

# Run a command with stdout in a file of the night and stderr in its log; if it fails, say why and end as it did.
step() {
    local file=$1 code=0 reason
    shift
    "$@" >"$night/$file" 2>>"$night/log.txt" || code=$?
    case $code in
    0) return ;;
    7) echo "batchscore $DAY: $(grep '^errors ' "$night/log.txt")" ;;
    *)
        reason=$(awk '/^error: / { said = substr($0, 8) } /^hint: / { said = said "\n" $0 } END { print said }' "$night/log.txt")
        echo "batchscore $DAY: exit code $code: ${reason:-$(tail -n 5 "$night/log.txt")}"
        exit "$code"
        ;;
    esac
}

# the last night that passed: names of days sort like days
baseline=
for passed in "$NIGHTS"/*/passed; do
    [[ -e $passed && $passed < $night/passed ]] && baseline=${passed%/passed}
done

step rerank.json batchscore rerank --job "$JOB" --out "$night/ranked.parquet" --store "$NIGHTS/store" --json \
    ${METRICS:+--metrics-file "$METRICS/night_rerank.prom"}

rm -f "$night/passed"
step eval.json batchscore eval "$night/ranked.parquet" --job "$JOB" --json \
    ${baseline:+--baseline "$baseline/ranked.parquet" --max-drop "$MAX_DROP"} \
    ${METRICS:+--metrics-file "$METRICS/night_eval.prom"}
touch "$night/passed"
