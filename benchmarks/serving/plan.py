"""The cases and the contenders of each."""

from dataclasses import dataclass, replace

SERVER_CORE, LOAD_CORE = "0", "1"
BOTH_CORES = "0,1"
PEERS = ("mosec", "Triton", "MLServer")
PEERS_OF_TEXTS = ("FastAPI", *PEERS)


@dataclass(frozen=True)
class Contender:
    """A server, or the graphs in process, with a load generator.

    Attributes:
        name: the name in tables.
        client: the load generator, a module of `clients`.
        mode: the load generator's mode of sending.
        servers: the names of the servers; empty in process.
        cores: the load generator's cores.
        outputs: the requested outputs; the case's if empty.
        concurrency: sequences in flight; the case's if 0.
    """

    name: str
    client: str = "attention"
    mode: str = "unary"
    servers: tuple[str, ...] = ("attention",)
    cores: str = LOAD_CORE
    outputs: str = ""
    concurrency: int = 0

    @property
    def peer(self) -> str:
        """The peer in `PEERS_OF_TEXTS`; empty for the service and in process."""
        return next((peer for peer in PEERS_OF_TEXTS if any(server.startswith(peer) for server in self.servers)), "")


@dataclass(frozen=True)
class Case:
    """One load and its contenders.

    Attributes:
        key: the name in commands and results.
        title: the name in tables.
        lengths: the argument of `block.sequences`.
        concurrency: sequences in flight.
        contenders: the contenders in order of measurement.
        outputs: the requested outputs.
    """

    key: str
    title: str
    lengths: str
    concurrency: int
    contenders: tuple[Contender, ...]
    outputs: str = "output"


ONE_BY_ONE = Contender("in process, one by one", "in_process", "one", (), SERVER_CORE)
TOGETHER = Contender("in process, 32 at once", "in_process", "together", (), SERVER_CORE)
UNARY = Contender("unary")
RAGGED = Contender("ragged", mode="ragged")
STREAMED = Contender("streamed", mode="streamed")
CLIENT = Contender("streamed by the shipped client", mode="client")
REST = Contender("REST, base64", "rest", "base64")
REST_PROTOBUF = Contender("REST, protobuf", "rest", "protobuf")
GRPCIO = Contender("grpcio server, unary", servers=("grpcio",))
GRPCIO_STREAMED = Contender("grpcio server, streamed", mode="streamed", servers=("grpcio",))
BARE = Contender("bare gRPC, unary", servers=("bare gRPC",))
BARE_STREAMED = Contender("bare gRPC, streamed", mode="streamed", servers=("bare gRPC",))
MOSEC = Contender("mosec", "mosec", servers=("mosec",))
MOSEC_BATCHED = Contender("mosec, batched", "mosec", servers=("mosec batched",))
TRITON = Contender("Triton", "open_inference", servers=("Triton",))
MLSERVER = Contender("MLServer", "open_inference", servers=("MLServer",))

ALONE = (ONE_BY_ONE, UNARY, REST, REST_PROTOBUF, GRPCIO, BARE, MOSEC, MOSEC_BATCHED, TRITON, MLSERVER)
OURS = (UNARY, RAGGED, STREAMED, CLIENT, REST, REST_PROTOBUF)
GRPC = (GRPCIO, GRPCIO_STREAMED, BARE, BARE_STREAMED)
MANY = (ONE_BY_ONE, *OURS, *GRPC, MOSEC, MOSEC_BATCHED, TRITON, MLSERVER)

ONE_THREAD = Contender("1 thread", "in_process", "threads", (), SERVER_CORE, concurrency=1)
TWO_THREADS = Contender("2 threads", "in_process", "threads", (), BOTH_CORES, concurrency=2)
TWO_SLOTS = Contender("one server, two slots", servers=("two slots",), cores=BOTH_CORES)
REPLICAS = Contender("two replicas", servers=("attention", "replica"), cores=BOTH_CORES)

PLAIN = Contender("outputs only", outputs="output")
TOP = Contender("mean over heads, top 8, FP16", outputs="top")
SENT = Contender("memory sent each time", mode="sent")
HANDLE = Contender("by handle, unary", mode="handle")
HANDLE_STREAMED = Contender("by handle, streamed", mode="handle streamed")
OVERLOAD = Contender("twice the capacity", mode="overload")

SPEED = (
    Case("t4-c32", "T=4 c32", "4", 32, (ONE_BY_ONE, TOGETHER, *MANY[1:])),
    Case("t32-c1", "T=32 c1", "32", 1, ALONE),
    Case("t32-c32", "T=32 c32", "32", 32, MANY),
    Case("t128-c1", "T=128 c1", "128", 1, ALONE),
    Case("t128-c16", "T=128 c16", "128", 16, MANY),
    Case("mixed-c32", "mixed c32", "mixed", 32, MANY),
)
WEIGHTS = (
    Case("weights", "T=128 c8, all weights", "128", 8, (ONE_BY_ONE, UNARY, MOSEC, TRITON, MLSERVER), "weights"),
    Case("reduced", "T=128 c8", "128", 8, (PLAIN, TOP)),
)
MEMORY = Case("memory", "one row over 1,024 positions", "1", 1, (SENT, HANDLE, HANDLE_STREAMED))
CORES = tuple(
    Case(f"slots-{key}", f"engine alone, {title}", key, 2, (ONE_THREAD, TWO_THREADS))
    for key, title in (("32", "T=32"), ("128", "T=128"), ("mixed", "mixed"))
)
TWO_CORES = tuple(
    Case(f"replicas-{key}", f"{title}, unary", key, concurrency, (TWO_SLOTS, REPLICAS))
    for key, title, concurrency in (("4", "T=4 c32", 32), ("128", "T=128 c16", 16), ("mixed", "mixed c32", 32))
)
TOO_MUCH = tuple(
    Case(f"overload-{key}", f"T={key}, unary", key, concurrency, (OVERLOAD,))
    for key, concurrency in (("128", 16), ("512", 8))
)

CASES = (*SPEED, *WEIGHTS, MEMORY, *CORES, *TWO_CORES, *TOO_MUCH)
START = "start"  # measured once, before all cases
MINILM = "minilm"  # measured in one process of its own; each of its lengths is a case of the results

BEFORE = "before"  # the server of an earlier revision


def twin(contender: Contender) -> Contender:
    """Return the same contender with the server of the earlier revision."""
    return replace(contender, name=f"{contender.name}, {BEFORE}", servers=(BEFORE,))


def against(cases: tuple[Case, ...] = CASES) -> tuple[Case, ...]:
    """Return the cases of one server, each contender followed by its twin at the earlier revision.

    All load generators are this revision's, so the shipped client, whose revision would matter, is left out.
    """
    paired = []
    for case in cases:
        ours = [each for each in case.contenders if each.servers == ("attention",)]
        ours = [each for each in ours if each.mode not in {"overload", CLIENT.mode}]
        if ours:
            both = tuple(side for each in ours for side in (each, twin(each)))
            paired.append(replace(case, contenders=both))
    return tuple(paired)
