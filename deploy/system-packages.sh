#!/usr/bin/env bash
# Installs what Python's packages cannot bring, where it is missing: venv on a bare Debian, and the libraries and commands
# named.
#   deploy/system-packages.sh [libnghttp2-14] [curl] [chromium] [prometheus] [nginx] [haproxy]
set -euo pipefail
PATH=$PATH:/usr/sbin
missing=()
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
for name in "$@"; do
  case "$name" in
    lib*) dpkg-query --show "$name" >/dev/null 2>&1 || missing+=("$name") ;;
    *) command -v "$name" >/dev/null || missing+=("$name") ;;
  esac
done
[ ${#missing[@]} = 0 ] && exit 0
exec 9<"$0" && flock 9 # environments are set up beside each other, and apt does not wait for its lock
echo "installing ${missing[*]}"
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update -qq
for name in prometheus nginx haproxy; do # tests run the commands: none is to become a service of this machine
  [[ " ${missing[*]} " == *" $name "* ]] || continue
  $sudo mkdir -p /etc/systemd/system
  $sudo ln -sfn /dev/null "/etc/systemd/system/$name.service"
  no_service=RUNLEVEL=1 # for init scripts
done
$sudo env DEBIAN_FRONTEND=noninteractive ${no_service:-} \
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
