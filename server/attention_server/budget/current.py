"""The lease of the request that a task answers, for work that outlives the task."""

from contextvars import ContextVar

from attention_server.budget.account import OPEN, Lease

NO_LEASE = OPEN.lease("")
current_lease: ContextVar[Lease] = ContextVar("current_lease", default=NO_LEASE)
