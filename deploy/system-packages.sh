#!/usr/bin/env bash
# Installs what Python's packages cannot bring, where it is missing: venv on a bare Debian, and the commands named.
#   deploy/system-packages.sh [curl] [chromium]
set -euo pipefail
missing=()
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
for command in "$@"; do
  command -v "$command" >/dev/null || missing+=("$command")
done
[ ${#missing[@]} = 0 ] && exit 0
echo "installing ${missing[*]}"
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
