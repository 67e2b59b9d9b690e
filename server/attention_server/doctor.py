"""`attention-server doctor`: the means of this machine, and the choices of a server with the same flags.

The standard library reads the machine. The settings need pydantic, of the extra `server`. No engine, event loop or
model is loaded.
"""

import ctypes
import ctypes.util
import json
import os
import platform
import re
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_proto.command import PACKAGE

from attention_server.machine import machine_memory, usable_cores, usable_memory

if TYPE_CHECKING:
    from attention_server.settings import Settings

MIB = 1024 * 1024
EXTRAS = ("cli", "plot", "batch", "ray", "server", "server-gpu", "export")
LIMITS = (
    "max_queued",
    "memory_budget_mib",
    "max_message_mib",
    "max_answer_mib",
    "max_scores_mib",
    "max_queued_mib",
    "memory_mib",
    "model_budget_mib",
)  # of the settings that are shown
USAGE = """\
usage: attention-server doctor [--json] [the flags of attention-server]

Reports what this machine has, and what a server with these flags would do here.
Exit status: 0 a server would start; 1 the report ends with the reasons against it.
"""


def main(arguments: list[str]) -> None:
    """Print the report on stdout; exit with status 1 where a server would not start.

    Args:
        arguments: `--json`, and flags of the server.
    """
    if not {"-h", "--help"}.isdisjoint(arguments):
        sys.stdout.write(USAGE)
        return
    report = examine([each for each in arguments if each != "--json"])
    if "--json" in arguments:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in _lines(report))
    sys.exit(1 if report["problems"] else 0)


def examine(arguments: list[str]) -> dict[str, Any]:
    """Return the report as JSON values.

    Args:
        arguments: flags of the server.
    """
    problems: list[str] = []
    return {
        "machine": _machine(),
        "extras": {extra: missing for extra in EXTRAS if (missing := _missing(extra)) is not None},
        "server": _server(arguments, problems),
        "problems": problems,
    }


def _machine() -> dict[str, Any]:
    return {
        "python": f"{platform.python_version()}, {PACKAGE} {version(PACKAGE)}",
        "cores": usable_cores(),
        "machine_cores": os.cpu_count(),
        "memory_mib": usable_memory() // MIB,
        "machine_memory_mib": machine_memory() // MIB,
        "libnghttp2": _nghttp2(),
        "cuda": _cuda(),
    }


def _nghttp2() -> str:
    """Return the version of the installed library, or the way to install it."""
    name = ctypes.util.find_library("nghttp2") or "libnghttp2.so.14"
    try:
        info = ctypes.CDLL(name).nghttp2_version
    except (OSError, AttributeError):
        return "not installed: apt-get install libnghttp2-14"
    info.restype = ctypes.c_void_p
    # struct nghttp2_info begins with its age and the number of the version, each an int; then the version as text.
    return (ctypes.c_char_p.from_address(info(0) + 2 * ctypes.sizeof(ctypes.c_int)).value or b"").decode()


def _cuda() -> str:
    driver = Path("/proc/driver/nvidia/version")
    if not driver.is_file():
        return "no NVIDIA driver"
    found = re.search(r"[0-9]+[.][0-9.]+", driver.read_text())
    engine = (
        "onnxruntime-gpu is installed" if _has("onnxruntime-gpu") else f"pip install '{PACKAGE}[server-gpu]' uses it"
    )
    return f"driver {found[0] if found else 'there'}; {engine}"


def _missing(extra: str) -> list[str] | None:
    """Return the requirements of an extra that are not installed; None for an extra that this package does not have."""
    marker = re.compile(rf"""extra == ['"]{extra}['"]""")
    needed = [each.partition(";")[0] for each in requires(PACKAGE) or () if marker.search(each)]
    names = [re.split(r"[^A-Za-z0-9._-]", each.strip(), maxsplit=1)[0] for each in needed]
    return sorted(name for name in names if not _has(name)) if names else None


def _has(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _server(arguments: list[str], problems: list[str]) -> dict[str, Any]:
    """Return the choices of a server; append the reasons why it would not start."""
    lacking = _missing("server-gpu" if _has("onnxruntime-gpu") else "server") or []
    if lacking:
        problems.append(f"{', '.join(lacking)} missing: pip install '{PACKAGE}[server]'")
    try:
        from pydantic_settings import SettingsError  # noqa: PLC0415 # of the extra `server`

        from attention_server.settings import read_settings  # noqa: PLC0415 # needs pydantic
    except ModuleNotFoundError as error:
        if not lacking:
            problems.append(f"{error.name} cannot be imported: pip install '{PACKAGE}[server]'")
        return {}
    try:
        settings = read_settings(arguments)
    except SettingsError as error:
        problems.append(str(error))
        return {}
    folders = sorted(settings.models.glob("*/*/manifest.json")) if settings.models.is_dir() else []
    if not settings.models.is_dir():
        problems.append(f"--models: there is no folder {settings.models}")
    return {
        "models": f"{settings.models}, {len({each.parts[-3] for each in folders})} models",
        **dict(_ports(settings, problems)),
        "grpc_server": _grpc_server(settings, problems),
        "device": _device(settings, problems),
        "slots": settings.compute_slots,
        **{name: value for name in LIMITS if (value := getattr(settings, name)) is not None},
        "access": f"{'TLS' if settings.tls_cert else 'in the clear'}, "
        f"{f'tokens of {settings.tokens}' if settings.tokens else 'every caller'}",
    }


def _ports(settings: "Settings", problems: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the address of each port, and whether it is free."""
    for name in ("rest_port", "grpc_port", "health_port"):
        port = getattr(settings, name)
        if port is None:
            continue
        address = f"{settings.host}:{port}"
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as free:
                free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                free.bind(place)
        except OSError as error:
            problems.append(f"--{name.replace('_', '-')}: {address}: {error.strerror or error}")
            yield name, f"{address}, {error.strerror or error}"
        else:
            yield name, f"{address}, free" if port else f"{settings.host}, a free one"


def _grpc_server(settings: "Settings", problems: list[str]) -> str:
    """Return the server of gRPC that would be chosen."""
    if settings.grpc_server == "grpcio":
        return "grpcio"
    try:
        from attention_server.http2.errors import LibraryError  # noqa: PLC0415 # beside the next
        from attention_server.http2.library import check_library  # noqa: PLC0415 # needs cffi

        check_library()
    except ModuleNotFoundError as error:
        return f"unknown: {error.name} is missing"
    except LibraryError as error:
        if settings.grpc_server == "native":
            problems.append(f"--grpc-server native: {error}")
        return f"grpcio, which is slower: {error}"
    return "native, on libnghttp2"


def _device(settings: "Settings", problems: list[str]) -> str:
    if settings.device == "cpu" or not _has("onnxruntime-gpu"):
        if settings.device == "cuda":
            problems.append(f"--device cuda: needs onnxruntime-gpu: pip install '{PACKAGE}[server-gpu]'")
        return "cpu"
    return f"{settings.device}: cuda where a session runs on it"


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the report as text."""
    yield from _section("machine", report["machine"])
    extras = {name: ", ".join(missing) for name, missing in report["extras"].items()}
    install = {name: f"missing {text}: pip install '{PACKAGE}[{name}]'" for name, text in extras.items() if text}
    yield from _section("extras", {name: install.get(name, "complete") for name in extras})
    yield from _section("server", report["server"])
    yield from _section("problems", dict(enumerate(report["problems"], 1)))
    if not report["problems"]:
        yield "A server with these flags would start here."


def _section(title: str, values: dict[Any, Any]) -> Iterator[str]:
    if values:
        yield title
        yield from (f"  {name!s:<19} {value}" for name, value in values.items())
