#!/bin/bash
# run.sh [ARGUMENT..]: the proof on a GPU. With WHEELS=dir its packages come from that folder alone, into build/gpu/venv;
# a wheel that was split for its size (NAME.whl.part00, NAME.whl.part01, ..) is joined. Without, PYTHON has to have them.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
  mkdir -p build/gpu/wheels
  for first in "$WHEELS"/*.whl.part00; do
    [ -e "$first" ] && cat "${first%00}"* > "build/gpu/wheels/$(basename "${first%.part00}")"
  done
  [ -x build/gpu/venv/bin/python ] || "$python" -m venv build/gpu/venv
  "$python" benchmarks/gpu/requirements.py > build/gpu/requirements.txt
  build/gpu/venv/bin/python -m pip install --quiet --no-index --find-links "$WHEELS" --find-links build/gpu/wheels \
    --requirement build/gpu/requirements.txt
  python=build/gpu/venv/bin/python
fi
# Libraries of CUDA that came as wheels are not on the loader's path.
libraries=$("$python" -c 'import glob, sysconfig; print(":".join(glob.glob(sysconfig.get_path("purelib") + "/nvidia/*/lib")))')
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PYTHONPATH="proto:client:server:.${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m benchmarks.gpu "$@"
