"""The core in this process, from bytes to answer, guided by coverage.

`python -m tests.trials.coverage_guided TARGET SCRATCH [libFuzzer's options]`

Atheris instruments the server's own code and mutates inputs that reached new branches; the edits and damages of all
doors are among its mutations. Any exception but an error of the table is a finding.
"""

import contextlib
import random
import sys
from pathlib import Path

TARGETS = ("attend-json", "infer-json", "attend-proto", "infer-proto")


def main() -> None:
    import atheris  # noqa: PLC0415 # it instruments later imports

    with atheris.instrument_imports(include=["attention_server", "attention_proto"]):
        from tests.trials import core_targets  # noqa: PLC0415 # it imports the server

    target, scratch = sys.argv[1], Path(sys.argv[2])
    run = core_targets.Core().target(target)

    def once(body: bytes) -> None:
        with contextlib.suppress(*core_targets.EXPECTED):
            run(body)

    def mutate(body: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.randrange(2):
            return atheris.Mutate(body, most)
        return core_targets.damaged(target, body, rng)[:most]

    corpus = scratch / "corpus"
    corpus.mkdir()
    core_targets.write_seeds(target, corpus)
    options = [
        sys.argv[0],
        *sys.argv[3:],
        f"-artifact_prefix={scratch}/",
        "-max_len=4096",
        "-rss_limit_mb=4096",
        str(corpus),
    ]
    atheris.Setup(options, once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
