"""Generate `attention_proto` from the .proto files; with --check, fail where the committed code differs.

The generated modules live inside the package `attention_proto`, so that the distribution claims one top-level name;
protoc writes imports from the proto root, which are moved here.
"""

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE / "attention_proto"
PROTOS = ("attention/v1/attention.proto", "inference/grpc_predict_v2.proto")


def generate(into: Path) -> list[Path]:
    """Run protoc with the Python, gRPC and typing plugins; return the files written, relative to `into`."""
    scripts = Path(sysconfig.get_path("scripts"))
    command = [sys.executable, "-m", "grpc_tools.protoc"]
    command += [f"--proto_path={HERE}", f"--proto_path={sysconfig.get_path('purelib')}"]
    command += [f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}"]
    command += [f"--python_out={into}", f"--grpc_python_out={into}", f"--mypy_out=quiet:{into}", *PROTOS]
    subprocess.run(command, check=True)
    files = sorted(path for path in into.rglob("*_pb2*") if path.suffix in (".py", ".pyi"))
    for path in files:
        path.write_text(
            re.sub(
                r"^from (attention|inference)(?=[. ])", r"from attention_proto.\1", path.read_text(), flags=re.MULTILINE
            )
        )
    return [path.relative_to(into) for path in files]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with what is committed, write nothing")
    if not parser.parse_args().check:
        print(*generate(PACKAGE), sep="\n")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        drifted = [
            path
            for path in generate(fresh)
            if not (PACKAGE / path).exists() or (PACKAGE / path).read_bytes() != (fresh / path).read_bytes()
        ]
    for path in drifted:
        print(f"drifted from its .proto: {PACKAGE.name}/{path}; run `make proto`", file=sys.stderr)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main())
