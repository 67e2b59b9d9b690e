#!/usr/bin/env bash
# Lints the contract with buf. Its one import, google/rpc/status.proto, comes from the installed googleapis package.
# Usage: proto/lint.sh BIN, the folder of the environment's programs
set -euo pipefail
bin=$(cd "${1:?BIN}" && pwd)
cd "$(dirname "$0")"
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
cp -r buf.yaml attention "$scratch"
google=$("$bin/python" -c 'import google.rpc.status_pb2 as m; print(m.__file__)')
mkdir -p "$scratch/google/rpc" && cp "${google%_pb2.py}.proto" "$scratch/google/rpc/"
cd "$scratch" && "$bin/buf" lint --path attention && echo "buf lint: clean"
