#!/usr/bin/env bash
# Fails where a test was skipped that may not be.
#
#   scripts/check-skips.sh LOG
#
# LOG holds the lines "skipped: NAME: reason" that tests wrote (tests/support/skip.rs). Each NAME must be listed in
# tests/allowed-skips.txt with its reason. On Debian as root everything can be installed and run, so there an unlisted
# skip is an error; elsewhere it is only said.
set -euo pipefail
cd "$(dirname "$0")/.."
log=${1:?usage: scripts/check-skips.sh LOG}
allowed=${ALLOWED_SKIPS:-tests/allowed-skips.txt}

strict=false
if [ "$(id -u)" -eq 0 ] && [ -e /etc/debian_version ]; then
  strict=true
fi

# The list itself: every entry has a reason.
if bad=$(grep -vE '^(#.*|[[:space:]]*|[a-z0-9-]+: .+)$' "$allowed"); then
  printf 'check-skips: %s: not "NAME: reason": %s\n' "$allowed" "$bad" >&2
  exit 1
fi

if [ ! -s "$log" ]; then
  echo "check-skips: nothing was skipped"
  exit 0
fi

unlisted=0
while IFS= read -r line; do
  name=$(sed -nE 's/^skipped: ([a-z0-9-]+): .+$/\1/p' <<<"$line")
  if [ -z "$name" ]; then
    echo "check-skips: not of the form 'skipped: NAME: reason': $line" >&2
    unlisted=$((unlisted + 1))
  elif grep -qE "^$name: " "$allowed"; then
    echo "check-skips: allowed: $line"
  else
    echo "check-skips: not allowed: $line" >&2
    unlisted=$((unlisted + 1))
  fi
done < <(sort -u "$log")

if [ "$unlisted" -eq 0 ]; then
  exit 0
fi
if $strict; then
  echo "check-skips: $unlisted skipped here that can run here: install what is missing" \
    "(scripts/bootstrap.sh), or list the name with its reason in $allowed" >&2
  exit 1
fi
echo "check-skips: $unlisted skipped; on Debian as root this would be an error"
