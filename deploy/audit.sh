#!/usr/bin/env bash
# Asks a database of vulnerabilities about each version that is locked. Exits with 0 if none is known, 1 if some are,
# and 2 if the database cannot be reached, in which case nothing is known.
set -uo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
worst=0
for lock in deploy/locks/*.lock; do
  if .venv-dev/bin/pip-audit --progress-spinner off --disable-pip --require-hashes --requirement "$lock" \
    --format json --output "$work/found" 2>"$work/said"; then
    echo "$lock: nothing is known against it"
  elif [ -s "$work/found" ]; then
    cat "$work/said" "$work/found"
    worst=$((worst > 1 ? worst : 1))
  else
    tail -n 1 "$work/said" >&2
    echo "$lock: not audited, for the database of vulnerabilities cannot be reached" >&2
    worst=2
  fi
done
exit "$worst"
