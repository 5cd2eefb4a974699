#!/usr/bin/env bash
# Tests the scripts that guard the tests: a guard that cannot fail guards nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT

fail() { echo "test-scripts: $*" >&2; exit 1; }

printf '# comment\n\ncorpus: real files that are not ours to publish\n' >"$temp/allowed"
export ALLOWED_SKIPS=$temp/allowed
skips() { printf '%s' "$1" >"$temp/log"; scripts/check-skips.sh "$temp/log" >"$temp/out" 2>&1; }

skips '' || fail "an empty log is no failure"
skips $'skipped: corpus: not here\n' || fail "a listed name is no failure"
if [ "$(id -u)" -eq 0 ] && [ -e /etc/debian_version ]; then
  skips $'skipped: corpus: not here\nskipped: fuse: no /dev/fuse\n' && fail "an unlisted name must fail"
  skips $'skipped: corp: not here\n' && fail "a part of a listed name must fail"
  skips $'skipped: something odd\n' && fail "a line of another form must fail"
else
  skips $'skipped: fuse: no /dev/fuse\n' || fail "elsewhere a skip is only said"
  grep -q 'not allowed: skipped: fuse' "$temp/out" || fail "elsewhere a skip is said"
fi
printf 'fuse\n' >"$temp/allowed"
skips '' && fail "an entry without a reason must fail"

scripts/bootstrap.sh --nonsense >/dev/null 2>&1 && fail "bootstrap must refuse unknown options"
for script in scripts/*.sh; do
  bash -n "$script" || fail "$script does not parse"
  [ -x "$script" ] || fail "$script is not executable"
done
echo "test-scripts: passed"
