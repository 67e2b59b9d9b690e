"""Generate code and documents from the contract and the table of stages; with --check, fail where a file differs.

Written: the modules of `attention_proto`, from the .proto files; the comments of `OutputSpec` in the contract, and the
OpenAPI document of the REST API and the TypeScript client, from `attention_proto/stages.py` and the contract; and
`attention.binpb`, the contract that `lint.sh` compares the next one with.

The generated modules live inside the package `attention_proto`, so that the distribution claims one top-level name;
protoc writes imports from the proto root, which are moved here.
"""

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

from attention_proto.stages import OPTIONS, PREDICTIONS, STAGES

HERE = Path(__file__).parent
ROOT = HERE.parent
PACKAGE = HERE / "attention_proto"
CONTRACT = "attention/v1/attention.proto"
PROTOS = (CONTRACT, "inference/grpc_predict_v2.proto")
LANDED = HERE / "attention.binpb"
OPENAPI = ROOT / "server/attention_server/rest/openapi.json"
TYPESCRIPT = ROOT / "client/typescript/attention.ts"
WIDTH = 120
OUTPUT_SPEC = re.compile(r"(?<=\nmessage OutputSpec \{\n).*?(?=\n\}\n)", re.DOTALL)
COMMENT = r"(?:^  //.*\n)+(?=  (?:repeated )?[\w.]+ {field} = \d+)"  # of a field


def main() -> int:
    """Run the program; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write none")
    check = parser.parse_args().check
    drifted = False
    for path, content in generated():
        if path.exists() and path.read_bytes() == content:
            continue
        drifted = True
        if check:
            print(f"drifted from its source: {path.relative_to(ROOT)}; run `make proto`", file=sys.stderr)
        else:
            path.write_bytes(content)
            print(path.relative_to(ROOT))
    return 1 if check and drifted else 0


def generated() -> Iterator[tuple[Path, bytes]]:
    """Yield each generated file and its content."""
    contract = HERE / CONTRACT
    yield contract, with_comments(contract.read_text()).encode()
    with tempfile.TemporaryDirectory() as scratch:
        descriptors = Path(scratch) / "descriptors.binpb"
        yield from modules(Path(scratch), descriptors)
        yield from zip((OPENAPI, TYPESCRIPT), openapi(descriptors), strict=True)
        yield LANDED, landed(Path(scratch) / "landed.binpb")


def with_comments(contract: str) -> str:
    """Return the contract with the comments of `OutputSpec`'s fields from the table of stages and options."""
    (spec,) = OUTPUT_SPEC.findall(contract)
    stages = [f"- `{stage.name}` {stage.shape}: {stage.words}." for stage in STAGES.values()]
    stages.append(f"- `{PREDICTIONS}`: the answers of the model's head; they take `rows`, `top` and `sample`.")
    comments = {"name": ["The name of a stage:", *stages]}
    comments |= {option.field: [option.words] for option in OPTIONS.values()}
    for field, paragraphs in comments.items():
        lines = []
        for each in paragraphs:
            hanging = "  " if each.startswith("- ") else ""
            lines += textwrap.wrap(each, WIDTH, initial_indent="  // ", subsequent_indent=f"  // {hanging}")
        comment = "".join(f"{line}\n" for line in lines).replace("\\", r"\\")  # no escapes of `re`
        spec, count = re.subn(COMMENT.format(field=field), comment, spec, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{CONTRACT}: OutputSpec has no field {field} with a comment")
    return OUTPUT_SPEC.sub(lambda _: spec, contract)


def modules(scratch: Path, descriptors: Path) -> Iterator[tuple[Path, bytes]]:
    """Run protoc with the Python, gRPC and typing plugins; yield the modules that it writes.

    Args:
        scratch: an empty folder.
        descriptors: the file to write the descriptors and comments of the messages to.
    """
    options = [f"--plugin=protoc-gen-mypy={Path(sysconfig.get_path('scripts')) / 'protoc-gen-mypy'}"]
    options += ["--include_source_info", f"--descriptor_set_out={descriptors}"]
    options += [f"--python_out={scratch}", f"--grpc_python_out={scratch}", f"--mypy_out=quiet:{scratch}"]
    protoc(*options, *PROTOS)
    for path in sorted(path for path in scratch.rglob("*_pb2*") if path.suffix in (".py", ".pyi")):
        content = re.sub(
            r"^from (attention|inference)(?=[. ])", r"from attention_proto.\1", path.read_text(), flags=re.MULTILINE
        )
        yield PACKAGE / path.relative_to(scratch), content.encode()


def protoc(*options: str) -> None:
    """Run protoc on the .proto files here; the one import of the contract comes from the installed googleapis."""
    paths = (f"--proto_path={HERE}", f"--proto_path={sysconfig.get_path('purelib')}")
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *paths, *options], check=True)


def landed(descriptors: Path) -> bytes:
    """Return the contract's descriptors without comments, and those that it imports."""
    protoc("--include_imports", f"--descriptor_set_out={descriptors}", CONTRACT)
    return descriptors.read_bytes()


def openapi(descriptors: Path) -> tuple[bytes, bytes]:
    """Return the OpenAPI document, and the TypeScript client that is made of it."""
    # They import the generated modules, which may be written by the steps before.
    import openapi_document  # noqa: PLC0415
    from openapi_document import typescript  # noqa: PLC0415

    document = openapi_document.build(descriptors)
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(), typescript.client(document).encode()


if __name__ == "__main__":
    sys.exit(main())
