#!/usr/bin/env bash
# Installs what Python's packages cannot bring, where it is missing: venv on a bare Debian.
set -euo pipefail
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null && exit 0
echo "installing python3-venv"
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
