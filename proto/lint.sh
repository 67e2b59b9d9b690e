#!/usr/bin/env bash
# Lints the contract with buf, and compares it with the last landed one, attention.binpb: v1 only grows.
# Its one import, google/rpc/status.proto, comes from the installed googleapis package.
# Usage: proto/lint.sh BIN, the folder of the environment's programs
set -euo pipefail
bin=$(cd "${1:?BIN}" && pwd)
cd "$(dirname "$0")"
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
cp -r buf.yaml attention attention.binpb "$scratch"
google=$("$bin/python" -c 'import google.rpc.status_pb2 as m; print(m.__file__)')
mkdir -p "$scratch/google/rpc" && cp "${google%_pb2.py}.proto" "$scratch/google/rpc/"
cd "$scratch"
"$bin/buf" lint --path attention
echo "buf lint: clean"
"$bin/buf" breaking --path attention --against attention.binpb
echo "buf breaking: the contract only grew"
