#!/usr/bin/env bash
# Installs what Python's packages cannot bring, where it is missing: venv on a bare Debian, and curl, which tests run.
set -euo pipefail
missing=()
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
command -v curl >/dev/null || missing+=(curl)
[ ${#missing[@]} = 0 ] && exit 0
echo "installing ${missing[*]}"
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
