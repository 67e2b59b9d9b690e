"""Who may call: bearer tokens from a file, with a name, rights and limits each.

    [search]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    rights = ["attend"]
    max_in_flight = 8
    requests_per_second = 100

The file holds the SHA-256 of each token, not the token. A slow hash protects what people choose; a token is 256 random
bits, which nobody finds by trying, and a slow hash would be paid on every request.
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
PREFIX = "attn_"  # by which a token that leaked is found in text

# Liveness and readiness need no credentials, by whichever protocol: paths of URLs, and of gRPC's methods.
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
    """One caller, as the file has it.

    Attributes:
        sha256: of its token; two while one takes the other's place.
        rights: `attend` computes and keeps memories; `repository` loads and unloads models. None reads descriptions.
        max_in_flight: how many of its requests may be here at once.
        requests_per_second: how many may come, averaged over a second.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: Digest | list[Digest]
    rights: list[Right] = ["attend"]
    max_in_flight: int | None = Field(None, ge=1)
    requests_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)


@dataclass
class Caller:
    """Who calls, what they may do, and how much of it at once.

    Attributes:
        name: the token's, or a client certificate's; empty for one who is not known by name.
    """

    name: str = ""
    rights: frozenset[Right] = ALL_RIGHTS
    max_in_flight: int | None = None
    requests_per_second: float | None = None
    _in_flight: int = field(default=0, init=False, repr=False, compare=False)
    _earned: float = field(default=0.0, init=False, repr=False, compare=False)
    _counted: float = field(default=0.0, init=False, repr=False, compare=False)  # 0 was long ago: the bucket is full
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def begin_request(self) -> Callable[[], None] | None:
        """Begin a request; return what ends it, to be called once; None where nobody counts.

        Raises:
            LimitReached: too many are here, or came within a second.
        """
        if self.max_in_flight is None and self.requests_per_second is None:
            return None
        with self._lock:
            if self.max_in_flight is not None and self._in_flight >= self.max_in_flight:
                raise LimitReached(f"{self.name} has {self._in_flight} requests in flight, as many as it may")
            if self.requests_per_second is not None:
                self._spend(self.requests_per_second)
            self._in_flight += 1
        return self._leave

    def _leave(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def _spend(self, rate: float) -> None:
        """Take one from a bucket that fills at the rate and holds a second's worth."""
        now = time.monotonic()
        self._earned = min(max(1.0, rate), self._earned + (now - self._counted) * rate)
        self._counted = now
        if self._earned < 1:
            reached = LimitReached(f"{self.name} may send {rate:g} requests a second")
            reached.retry_after = (1 - self._earned) / rate
            raise reached
        self._earned -= 1


ANYONE = Caller()


class Callers:
    """Knows callers by their tokens; without a file, everyone may do everything.

    Args:
        path: of the file of tokens.

    Raises:
        OSError, ValueError: it cannot be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._known: dict[str, Caller] = {}
        self._tokens = None if path is None else FileWatcher("tokens", (path,), lambda: self._read(path))

    def authenticate(self, authorization: str | None) -> Caller:
        """Return whose credentials these are.

        Args:
            authorization: the header's value: `Bearer TOKEN`; or, from a browser, `Basic` with the token as password.

        Raises:
            Unauthenticated: there are none, or nobody's.
        """
        if self._tokens is None:
            return ANYONE
        if not authorization:
            raise Unauthenticated("send a token as `Authorization: Bearer TOKEN`")
        digest = digest_of(_token(authorization))
        found = None
        for known, caller in self._tokens.get():
            if hmac.compare_digest(known, digest):  # every one is compared, so that time tells nothing
                found = caller
        if found is None:
            raise Unauthenticated("this token is nobody's, or no longer")
        return found

    def _read(self, path: Path) -> list[tuple[str, Caller]]:
        entries = _entries(path)
        callers = {
            name: Caller(name, frozenset(entry.rights), entry.max_in_flight, entry.requests_per_second)
            for name, entry in entries.items()
        }
        for name in callers.keys() & self._known.keys():
            before = self._known[name]
            # Requests under way end at the object that counted them: where nothing changed, it stays.
            if before == callers[name]:
                callers[name] = before
        self._known = callers
        return [(digest, callers[name]) for name, entry in entries.items() for digest in _digests(entry)]


def new_token() -> str:
    """Return a token of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """Return what the file holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def _entries(path: Path) -> dict[str, CallerConfig]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        entries = TypeAdapter(dict[str, CallerConfig]).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]  # an input may be a secret in a wrong place
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {where}: {first['msg']}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    digests = [digest for entry in entries.values() for digest in _digests(entry)]
    if len(set(digests)) < len(digests):
        raise ValueError(f"{path}: two callers have the same token")
    return entries


def _digests(entry: CallerConfig) -> list[str]:
    return [entry.sha256] if isinstance(entry.sha256, str) else entry.sha256


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
