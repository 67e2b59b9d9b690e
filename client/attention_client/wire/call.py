"""Calls of the service as values, and flows: generators of calls that blocking code and asyncio drive alike.

A flow yields each step that has to wait, and is sent the step's outcome. All rules (retries, deadlines, order, the
meaning of an error) stand in flows, once for both clients; a driver only performs the steps. httpx shares its
authentication between two clients in the same way.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import grpc

from attention_client.wire import channel
from attention_client.wire.status import broke_off, from_call

StepT = TypeVar("StepT")
ResultT = TypeVar("ResultT")
RequestT = TypeVar("RequestT")
RequestT_contra = TypeVar("RequestT_contra", contravariant=True)
ResponseT = TypeVar("ResponseT")
ResponseT_co = TypeVar("ResponseT_co", covariant=True)

Flow = Generator[StepT, Any, ResultT]

FIRST_BACKOFF = 0.1  # seconds; doubles
MAX_BACKOFF = 2.0  # seconds; both as in `channel.SERVICE_CONFIG`


def backoff(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row."""
    return min(FIRST_BACKOFF * 2.0 ** (failures - 1), MAX_BACKOFF)


class Method(Protocol[RequestT_contra, ResponseT_co]):
    """A unary method of a stub, blocking or of asyncio."""

    def __call__(
        self, request: RequestT_contra, /, *, timeout: float, metadata: channel.Metadata
    ) -> ResponseT_co | Awaitable[ResponseT_co]: ...


class Call(NamedTuple):
    """One attempt to call a method: the step that is to be sent, with its answer or `grpc.RpcError` as the outcome."""

    method: Method[Any, Any]
    request: Any
    timeout: float
    """Seconds; below 0 when the time is over, which gRPC reports."""
    metadata: channel.Metadata
    delay: float = 0.0
    """Seconds to wait before the call."""


def call_with_retries(
    method: Method[RequestT, ResponseT], request: RequestT, seconds: float, metadata: channel.Metadata
) -> Flow[Call, ResponseT]:
    """Call a method; call it again when the connection breaks in mid-answer, which gRPC's own retries leave out.

    The pause before each repetition doubles, and ends with the time.

    Args:
        method: of the stub.
        request: its message.
        seconds: the time for all attempts together.
        metadata: sent with each attempt, with the trace that is current then.

    Raises:
        AttentionError: the call failed.
    """
    deadline = time.monotonic() + seconds
    delay, failures = 0.0, 0
    while True:
        left = deadline - time.monotonic()
        delay = min(delay, max(0.0, left))
        outcome = yield Call(method, request, left - delay, channel.traced(metadata), delay)
        if not isinstance(outcome, grpc.RpcError):
            return cast("ResponseT", outcome)
        if not broke_off(outcome):
            raise from_call(cast("grpc.Call", outcome)) from outcome
        failures += 1
        delay = backoff(failures)


def send(call: Call) -> Any:
    """Send a call after its delay; return its answer or the `grpc.RpcError` that it failed with."""
    if call.delay:
        time.sleep(call.delay)
    try:
        return call.method(call.request, timeout=call.timeout, metadata=call.metadata)
    except grpc.RpcError as error:
        return error


async def send_async(call: Call) -> Any:
    """Send a call of an asyncio stub after its delay; return its answer or the `grpc.RpcError` that it failed with."""
    if call.delay:
        await asyncio.sleep(call.delay)
    try:
        return await call.method(call.request, timeout=call.timeout, metadata=call.metadata)
    except grpc.RpcError as error:
        return error


def run(flow: Flow[StepT, ResultT], perform: Callable[[StepT], Any]) -> ResultT:
    """Drive a flow to its end, blocking; return its result."""
    try:
        step = next(flow)
        while True:
            step = flow.send(perform(step))
    except StopIteration as end:
        return cast("ResultT", end.value)


async def run_async(flow: Flow[StepT, ResultT], perform: Callable[[StepT], Awaitable[Any]]) -> ResultT:
    """Drive a flow to its end by asyncio; return its result."""
    try:
        step = next(flow)
        while True:
            step = flow.send(await perform(step))
    except StopIteration as end:
        return cast("ResultT", end.value)
