#!/usr/bin/env bash
# Writes deploy/locks/: what the images are built of, each file by its hash; and for each image its SBOM (CycloneDX).
# Versions are those of .venv, so that what was tested is what is shipped. `lock.sh --sbom` writes the SBOMs alone.
set -euo pipefail
cd "$(dirname "$0")/.."
# Serving never loads them: tokenizers would download from a hub by them.
unused=(huggingface-hub hf-xet httpx2 httpcore2 truststore fsspec filelock tqdm pyyaml)
locks=deploy/locks
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# lock NAME REQUIREMENTS-FILE UV-OPTION...
lock() {
  echo "# Made by \`make lock\`." >"$work/$1.lock"
  .venv-dev/bin/uv pip compile --quiet --python-version 3.11 --python-platform linux --generate-hashes --no-header --no-annotate \
    "${unused[@]/#/--no-emit-package=}" "${@:3}" "$2" >>"$work/$1.lock"
  mv "$work/$1.lock" "$locks/$1.lock"
}

if [ "${1:-}" != --sbom ]; then
  .venv/bin/pip freeze --exclude-editable >"$work/tested"
  lock server pyproject.toml --extra server --constraint "$work/tested"
  lock server-gpu pyproject.toml --extra server-gpu --constraint "$work/tested"
  echo hatchling >"$work/build.in"
  lock build "$work/build.in"
fi

# Packages by name and version (purl); where they are fetched from is the builder's affair. Those of the page's bundle are
# named where their licences are, which `make web` writes from what it bundled.
for extra in server server-gpu; do
  .venv-dev/bin/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application --output-reproducible \
    --spec-version 1.6 --output-format JSON "$locks/$extra.lock" 2>/dev/null >"$work/sbom"
  .venv-dev/bin/python - "$work/sbom" server/attention_server/rest/page/LICENSES.txt \
    >"$locks/$extra.cdx.json" <<'PYTHON'
import json, re, sys
from pathlib import Path
from urllib.parse import quote

document = json.loads(Path(sys.argv[1]).read_text())
for tool in document["metadata"]["tools"]["components"]:
    tool.pop("externalReferences", None)
for component in document["components"]:
    component.pop("externalReferences", None)
    component.pop("description", None)
    component["bom-ref"] = component["purl"]
for name, version in re.findall(r"^(\S+) (\d+\.\d+\.\d+\S*)$", Path(sys.argv[2]).read_text(), re.MULTILINE):
    purl = f"pkg:npm/{quote(name)}@{version}"
    component = {"bom-ref": purl, "name": name, "purl": purl, "type": "library", "version": version}
    document["components"].append(component)
root = document["metadata"]["component"]["bom-ref"]
document["dependencies"] = [{"ref": root, "dependsOn": sorted(c["purl"] for c in document["components"])}]
print(json.dumps(document, indent=1))
PYTHON
done
