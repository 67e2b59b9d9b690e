"""The trial of versions in a process of its own: what ends or fails there is a refusal, and the next one is tried."""

import subprocess
import sys

import pytest
from serving import HANG

PROGRAM = """
import os, sys
from pathlib import Path
from attention_server.repository.loader import RepositoryError, Tried
from attention_server.repository.trial import Trials
from attention_server.scheduling.cost_model import Costs

def never(folder):
    while True: pass

def hold(folder):
    try: bytearray(2**31)
    except MemoryError as error: raise RepositoryError("cannot be loaded") from error

def refuse(folder):
    raise RepositoryError("for callers", "for the log")

KINDS = {"never": never, "hold": hold, "refuse": refuse, "abort": lambda folder: os.abort(),
         "killed": lambda folder: os.kill(os.getpid(), 9), "exit": lambda folder: os._exit(3)}

def try_version(folder, max_bytes):
    KINDS.get(folder.name, lambda folder: None)(folder)
    return Tried(folder.name, "cpu", Costs())

trials = Trials.fork(try_version, seconds=float(sys.argv[1]), memory=2**30)
for name in sys.argv[2:]:
    try:
        print(trials.run(Path(name), 0).digest)
    except RepositoryError as error:
        print(error, "|", error.log_reason)
"""


def tried(seconds: float, *names: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, str(seconds), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    return done.stdout.splitlines()


def test_a_trial_that_fails_is_a_refusal() -> None:
    """Words for callers and for the log, a signal, the system's kill, too much memory; the next version is tried."""
    refused, aborted, killed, ended, held, good = tried(HANG, "refuse", "abort", "killed", "exit", "hold", "good")
    assert refused == "for callers | for the log"
    assert aborted.startswith("ended the process that tried it, by SIGABRT")
    assert killed.startswith("ended the process that tried it, which the system killed: it needs more memory than")
    assert ended.startswith("ended the process that tried it, with status 3")
    assert held.startswith("needs more than") and "MiB to be loaded, warmed and measured" in held
    assert good == "good"


@pytest.mark.parametrize("seconds", [0.2])
def test_a_trial_ends_after_its_time(seconds: float) -> None:
    """A version that never ends is refused after so many seconds."""
    assert "takes longer than 0.2 s" in tried(seconds, "never")[0]
