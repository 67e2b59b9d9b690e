"""Callers: bearer tokens from a file, each with a name, rights and limits.

    [search]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    rights = ["attend"]
    max_in_flight = 8
    requests_per_second = 100

The file has the SHA-256 of each token, not the token. Slow hashes protect passwords that people choose; a token is 256
random bits, which cannot be guessed, and a slow hash would cost time on every request.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from attention_server.auth.file_watcher import FileWatcher
from attention_server.domain.call import Right
from attention_server.errors import LimitReached, Unauthenticated

ALL_RIGHTS: frozenset[Right] = frozenset({"attend", "repository"})
PREFIX = "attn_"  # lets scanners find leaked tokens in text

# Liveness and readiness need no credentials: paths of URLs and of gRPC methods.
PUBLIC_PATHS = frozenset(
    {
        "/healthz",
        "/readyz",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/v2/health/live",
        "/v2/health/ready",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class CallerConfig(BaseModel):
    """A caller's table in the token file.

    Attributes:
        sha256: the SHA-256 of the caller's token; a list while one token replaces another.
        rights: `attend` computes and keeps memories; `repository` loads and unloads models. A caller without rights
            reads descriptions.
        max_in_flight: the most requests at once; None for no limit.
        requests_per_second: the most requests, averaged over a second; None for no limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: Digest | list[Digest]
    rights: list[Right] = ["attend"]
    max_in_flight: int | None = Field(None, ge=1)
    requests_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)


@dataclass
class Caller:
    """A caller with its rights, limits and counts of requests.

    Attributes:
        name: the name in the token file or the client certificate; empty for an anonymous caller.
        rights: the caller's rights.
        max_in_flight: the most requests at once; None for no limit.
        requests_per_second: the most requests, averaged over a second; None for no limit.
    """

    name: str = ""
    rights: frozenset[Right] = ALL_RIGHTS
    max_in_flight: int | None = None
    requests_per_second: float | None = None
    _in_flight: int = field(default=0, init=False, repr=False, compare=False)
    _bucket: float = field(default=0.0, init=False, repr=False, compare=False)
    _refilled: float = field(default=0.0, init=False, repr=False, compare=False)  # long ago: the bucket begins full
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def begin_request(self) -> Callable[[], None] | None:
        """Count a request; return a function to call once at its end, or None for a caller without limits.

        Raises:
            LimitReached: the caller is over its limit of requests at once or of requests per second.
        """
        if self.max_in_flight is None and self.requests_per_second is None:
            return None
        with self._lock:
            if self.max_in_flight is not None and self._in_flight >= self.max_in_flight:
                raise LimitReached(f"{self.name} has {self._in_flight} requests in flight, as many as it may")
            if self.requests_per_second is not None:
                self._take_from_bucket(self.requests_per_second)
            self._in_flight += 1
        return self._end_request

    def _end_request(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def _take_from_bucket(self, rate: float) -> None:
        """Take one request from a bucket that fills at `rate` and holds at most one second's requests, or one."""
        now = time.monotonic()
        self._bucket = min(max(1.0, rate), self._bucket + (now - self._refilled) * rate)
        self._refilled = now
        if self._bucket < 1:
            reached = LimitReached(f"{self.name} may send {rate:g} requests a second")
            reached.retry_after = (1 - self._bucket) / rate
            raise reached
        self._bucket -= 1


ANYONE = Caller()


class Callers:
    """The known callers by token. Without a token file every caller is anonymous and has every right.

    Args:
        path: the token file.

    Raises:
        OSError, ValueError: the file cannot be read or is invalid.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._by_name: dict[str, Caller] = {}
        self._file = None if path is None else FileWatcher("tokens", (path,), lambda: self._read(path))

    def authenticate(self, authorization: str | None) -> Caller:
        """Return the caller with these credentials.

        Args:
            authorization: the value of the Authorization header: `Bearer TOKEN`, or `Basic` with the token as the
                password, which browsers send.

        Raises:
            Unauthenticated: there are no credentials, or the token is unknown.
        """
        if self._file is None:
            return ANYONE
        if not authorization:
            raise Unauthenticated("send a token as `Authorization: Bearer TOKEN`")
        digest = digest_of(_token(authorization))
        found = None
        for known, caller in self._file.get():
            if hmac.compare_digest(known, digest):  # no early end: the time must not depend on the match
                found = caller
        if found is None:
            raise Unauthenticated("this token is nobody's, or no longer")
        return found

    def _read(self, path: Path) -> list[tuple[str, Caller]]:
        configs = _parse(path)
        callers = {
            name: Caller(name, frozenset(config.rights), config.max_in_flight, config.requests_per_second)
            for name, config in configs.items()
        }
        for name in callers.keys() & self._by_name.keys():
            previous = self._by_name[name]
            # Requests in flight are counted by their Caller object, so an unchanged caller keeps its object.
            if previous == callers[name]:
                callers[name] = previous
        self._by_name = callers
        return [(digest, callers[name]) for name, config in configs.items() for digest in _digests(config)]


def new_token() -> str:
    """Return a token of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """Return the SHA-256 of a token, as in the token file."""
    return hashlib.sha256(token.encode()).hexdigest()


def _parse(path: Path) -> dict[str, CallerConfig]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        configs = TypeAdapter(dict[str, CallerConfig]).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[
            0
        ]  # the input is left out: it may be a misplaced secret
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {where}: {first['msg']}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    digests = [digest for config in configs.values() for digest in _digests(config)]
    if len(set(digests)) < len(digests):
        raise ValueError(f"{path}: two callers have the same token")
    return configs


def _digests(config: CallerConfig) -> list[str]:
    return [config.sha256] if isinstance(config.sha256, str) else config.sha256


def _token(authorization: str) -> str:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            pass
    raise Unauthenticated("credentials are `Bearer TOKEN`, or `Basic` with a token as the password")
