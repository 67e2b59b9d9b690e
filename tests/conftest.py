"""Shared fixtures: a repository made once, a real server on it, and one way to call it over every transport."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import serving
import structlog
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from serving import Server, made_repository, start_server

from tests.transports import TRANSPORTS, Base64Sender, GrpcSender, JsonSender, ProtobufSender, Transport

# Folders and files of tests, longest first.
IMPORTED = ("test_imported_decoders.py", "test_imported_models.py", "test_imported_encoder_decoders.py")
LONGEST = ("containers", "conformance", "batch", *IMPORTED, "export", "trials", "benchmarks")


def pytest_configure(config: pytest.Config) -> None:
    """Keep structlog's defaults in this process, and have processes that tests start obey SIGINT.

    A shell without job control ignores SIGINT in the background.
    """
    structlog.configure()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the minutes of each folder of tests, set-up included; CONTRIBUTING.md has the budget of each."""
    minutes: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                minutes[str(Path(report.nodeid.partition("::")[0]).parent)] += report.duration / 60
    terminalreporter.section("minutes by folder")
    for folder, taken in [*minutes.most_common(), ("all", minutes.total())]:
        terminalreporter.write_line(f"{taken:6.1f}  {folder}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module that is marked `both_grpc_servers` over both servers of gRPC.

    A test marked `native_grpc(reason)` runs over the native one alone.
    """
    if metafunc.definition.get_closest_marker("both_grpc_servers"):
        kinds = ["native"] if metafunc.definition.get_closest_marker("native_grpc") else ["native", "grpcio"]
        if "grpc_server" not in metafunc.fixturenames:
            metafunc.fixturenames.insert(0, "grpc_server")
        metafunc.parametrize("grpc_server", kinds, indirect=True, scope="session")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of a file to one worker, so that fixtures are made once; those over grpcio's server apart."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 # only where there are workers

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            is_over_grpcio = "grpcio" in test.partition("[")[2].rstrip("]").split("-")
            return f"{file} grpcio" if is_over_grpcio else file

    return ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have workers begin with the folders and files that take longest, so that none ends long after the others."""
    if hasattr(config, "workerinput"):
        order = {folder: place for place, folder in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.name, order.get(item.path.parent.name, len(order))))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start the servers of a test, and of its fixtures, with what it is to be served by."""
    kind = getattr(getattr(item, "callspec", None), "params", {}).get("grpc_server", "")
    serving.GRPC_SERVER[:] = ["--grpc-server", kind] if kind else []


@pytest.fixture(autouse=True)
def logging_is_left() -> Iterator[None]:
    """Fail a test that configures logging for its process: loggers cached then are captured in no later test."""
    yield
    assert not structlog.get_config()["cache_logger_on_first_use"], "the test has configured logging"


# --- one server for all ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def repository(request: pytest.FixtureRequest) -> Path:
    """A folder of models: small ones of every block with drawn weights, and the trained one that reads text."""
    return made_repository(request.config.cache.mkdir("repositories"))


@pytest.fixture(scope="session")
def dot_only(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one small model."""
    folder = tmp_path_factory.mktemp("dot_only")
    (folder / "dot").symlink_to(repository / "dot")
    return folder


@pytest.fixture(scope="session")
def tiny_versions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Versions imported of tiny checkpoints, shared by all workers: a `TinyVersions`."""
    from export.tiny_versions import TinyVersions  # noqa: PLC0415 # torch is imported only where it is used

    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if hasattr(request.config, "workerinput") else folder) / "tiny-versions"
    folder.mkdir(exist_ok=True)
    return TinyVersions(folder)


@pytest.fixture(scope="session")
def grpc_server(request: pytest.FixtureRequest) -> str:
    """What serves gRPC in the servers that a test starts; empty for the default."""
    return getattr(request, "param", "")


@pytest.fixture(scope="session")
def server(repository: Path, grpc_server: str) -> Iterator[Server]:
    """One server for all tests that do not change it."""
    with start_server(repository) as running:
        yield running


@pytest.fixture(scope="session")
def connect() -> Iterator[Callable[[str, str, str], Transport]]:
    """Connect to a server in the way named: `connect("grpc", REST_ADDRESS, GRPC_ADDRESS)`."""
    channels: dict[str, grpc.Channel] = {}
    with requests.Session() as session:

        def connected(name: str, rest_address: str, grpc_address: str) -> Transport:
            if name == "grpc":
                if grpc_address not in channels:
                    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
                    channels[grpc_address] = grpc.insecure_channel(grpc_address, unlimited)
                return Transport(name, GrpcSender(AttentionServiceStub(channels[grpc_address])))
            sender = {"rest-json": JsonSender, "rest-base64": Base64Sender, "rest-protobuf": ProtobufSender}[name]
            return Transport(name, sender(session, f"http://{rest_address}"), shorthand=name == "rest-json")

        yield connected
        for channel in channels.values():
            channel.close()


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, server: Server, connect: Any) -> Transport:
    """Each transport in turn: a test that uses it holds for all."""
    return connect(request.param, server.rest, server.grpc)
