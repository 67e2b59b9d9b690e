"""Faults of servers under load: a kill, a stop, models that are loaded and unloaded."""

import contextlib
import os
import random
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import requests
from attention_client import AttentionClient
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import HANG, made_repository, start_server, wait_until

from tests.trials.load import ENOUGH, Load, ask, mib_of_request, under_load
from tests.trials.subject import Good, Wrong, goods, under_trial

GOES_ON = 8.0  # seconds that a server that stops goes on accepting: enough to look at it meanwhile


def kill_of_one_of_two(rng: random.Random, kills: int = 1) -> int:
    """One of two replicas is killed under load, at 1 MiB a request too: no call of the shipped client fails."""
    repository = made_repository()
    asked = goods(repository)
    answered = 0
    for _ in range(kills):
        with ExitStack() as stack:
            first = stack.enter_context(start_server(repository))
            second = stack.enter_context(start_server(repository))
            target = f"{first.grpc},{second.grpc}"
            with under_load(target, asked, threads=4, large=mib_of_request()) as load:
                load.wait_for(2 * ENOUGH)
                victim = rng.choice((first, second))
                os.kill(victim.process.pid, signal.SIGKILL)
                victim.process.wait(30)
                load.wait_for(2 * ENOUGH)
            victim.process.returncode = 0  # it was to die
            answered += load.answered
    return answered


def stop_under_load(rng: random.Random) -> int:
    """A replica is told to stop under load: it says so, goes on, drains and ends with 0, and no call fails."""
    repository = made_repository()
    asked = goods(repository)
    with start_server(repository) as other, start_server(repository, "--stop-accepting-after", GOES_ON) as leaving:
        own = Load(leaving.grpc, asked, threads=2)  # this load has one server: its calls may fail once that has closed
        own.start()
        with (
            under_load(f"{leaving.grpc},{other.grpc}", asked, threads=3, large=mib_of_request()) as load,
            grpc.insecure_channel(leaving.grpc) as channel,
        ):
            load.wait_for(ENOUGH)
            leaving.process.terminate()
            wait_until(lambda: requests.get(f"{leaving.url}/readyz", timeout=HANG).status_code == 503)
            status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30).status
            alive = requests.get(f"{leaving.url}/healthz", timeout=30).status_code
            if status != health_pb2.HealthCheckResponse.NOT_SERVING or alive != 200:
                raise Wrong(f"while it stops, gRPC's health says {status} and /healthz {alive}")
            with AttentionClient(leaving.grpc) as client:
                ask(client, asked[0])  # it still accepts
            if own.lost:
                raise Wrong(f"while it still accepted, {own.lost[:3]}")
            if leaving.process.wait(HANG) != 0:
                raise Wrong(f"a stop ended with {leaving.process.returncode}")
            load.wait_for(ENOUGH)
        own.end()
        if own.wrong or "Traceback" in leaving.log:
            raise Wrong(f"{own.wrong[:3]} {leaving.log[-2000:]}")
    return load.answered


def swaps(rng: random.Random, count: int = 10) -> int:
    """Models come, go and are loaded anew under load: each answer is right for the version that gave it."""
    repository = made_repository()
    with TemporaryDirectory() as scratch:
        models = Path(scratch) / "models"
        shutil.copytree(repository, models)
        mode = ("--repository-mode", "explicit", "--load-model", "*")
        steady = [good for good in goods(repository) if good.model != "self"]
        moving = [good for good in goods(repository) if good.model == "self"]
        with under_trial(*mode, models=models) as subject:
            subject.goods = tuple(steady)
            with under_load(subject.server.grpc, tuple(steady)) as load, AttentionClient(subject.server.grpc) as client:
                for i in range(count):
                    action = "unload" if i % 2 == 0 else "load"
                    url = f"{subject.server.url}/v2/repository/models/self/{action}"
                    if (status := requests.post(url, timeout=60).status_code) != 200:
                        raise Wrong(f"{action} had {status}")
                    for good in moving:
                        if action == "load":
                            ask(client, good)
                            continue
                        with contextlib.suppress(LookupError):
                            _is_not_found(client, good)
                    load.wait_for(5)
            subject.check("swaps")
    return load.answered


def _is_not_found(client: AttentionClient, good: Good) -> None:
    try:
        ask(client, good)
    except Wrong:
        raise
    except Exception as error:  # it is looked at
        if type(error).__name__ != "NotFound":
            raise Wrong(f"a model that was unloaded had {error!r}") from error
    else:
        raise Wrong("a model that was unloaded answers")
