#!/usr/bin/env bash
# Runs each fuzz target for FUZZ_SECONDS (default 900) and says how many inputs it tried.
#   scripts/fuzz.sh [TARGET...]
# Ends with an error where a target found something; the input is then in fuzz/artifacts/TARGET/.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds="${FUZZ_SECONDS:-900}"
if [ $# -gt 0 ]; then targets=("$@"); else targets=(walk check apply structures); fi

# Everything is safe Rust: the address sanitizer would only make it slow.
build=(cargo +nightly fuzz build --fuzz-dir fuzz --sanitizer none)
"${build[@]}"

failed=0
summary=""
for target in "${targets[@]}"; do
    log="fuzz/target/$target.log"
    echo "fuzzing $target for $seconds s (log: $log)"
    status=0
    mkdir -p "fuzz/corpus/$target"
    # The target writes its seeds before it reads its corpus.
    PSTSYNCD_SEEDS="fuzz/corpus/$target" cargo +nightly fuzz run --fuzz-dir fuzz --sanitizer none "$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=1024 -malloc_limit_mb=1024 -timeout=10 \
        -max_len=307200 -print_final_stats=1 >"$log" 2>&1 || status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log" | tail -n 1)
    if [ "$status" -eq 0 ]; then
        line="$target: clean, ${runs:-0} executions in $seconds s, peak ${peak:-?} MB"
    else
        failed=1
        line="$target: FAILED after ${runs:-?} executions; see $log"
    fi
    echo "$line"
    summary+="$line"$'\n'
done
printf '\n%s' "$summary"
exit "$failed"
