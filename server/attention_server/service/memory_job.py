"""The job of one memory request: projecting a memory's keys and values, and keeping the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attention_server.contexts.memory import Memory, content_hash, stored
from attention_server.contexts.past import Past
from attention_server.contexts.store import MemoryStore
from attention_server.domain.call import CallContext
from attention_server.domain.messages import MemoryRequest, Tokens
from attention_server.inference.engine.protocol import Run
from attention_server.inference.model import LoadedModel
from attention_server.inference.preprocess import Vectors
from attention_server.scheduling.job import Job


@dataclass(frozen=True, slots=True, eq=False)
class MemoryJob:
    """One memory request, validated.

    Attributes:
        request: the request.
        model: the leased model version.
        key: [S, Dk]; None for a memory of text.
        value: [S, Dv]; None for the key.
        tokens: tokens of the memory's text.
        ttl: time to live after the last use, in seconds.
        call: the context of the call.
        store: the store that will keep the memory.
    """

    request: MemoryRequest
    model: LoadedModel
    key: Vectors | None
    value: Vectors | None
    tokens: Tokens | None
    ttl: float
    call: CallContext
    store: MemoryStore

    def to_job(self) -> "Job[MemoryJob, Memory]":
        """Return the job for the scheduler."""
        self.call.record.mark_submitted()
        length = len(self.tokens.ids) if self.tokens else 0 if self.key is None else len(self.key)
        size = sum(each.nbytes for each in (self.key, self.value) if each is not None)
        return Job(
            payload=self,
            run=_compute,
            deadline=self.call.deadline,
            caller=self.call.caller,
            cost=self.model.costs.seconds(self.model.memory_size(length)),
            size=size + max(size, self.model.memory_bytes(length)),
            peak=self.model.memory_peak(length),
        )

    def project(self) -> tuple[dict[str, Vectors], Past | None]:
        """Project the memory; return its tensors by name, each [1, S, width], or the prefix of a decoder."""
        run = Run()
        self.call.add_run(run)
        self.call.record.mark_running()
        try:
            if self.model.keeps_prefix:
                assert self.tokens is not None  # checked: a decoder keeps texts alone
                return {}, self.model.keep_prefix(self.tokens, self.request.data_type, run)
            return self.model.project_memory(self.key, self.value, self.tokens, run), None
        finally:
            self.call.remove_run(run)
            self.call.record.mark_computed()

    def keep(self, tensors: dict[str, Vectors], past: Past | None) -> Memory:
        """Put the projected memory into the store.

        Raises:
            InvalidRequest: a number is beyond the range of the kept format, or the id names a memory of
                other content.
            TooLarge: the memory is over the budget or its owner's share.
            Full: requests in progress hold the memories that would make room.
        """
        model, request = self.model, self.request
        text = [request.memory_text, *([] if request.truncate == "none" else [request.truncate])]
        sent = [self.key, self.value, *([request.memory_token_ids] if request.memory_text is None else text)]
        kept, error = stored(tensors, request.data_type)
        return self.store.put(
            Memory(
                id=request.id,
                model=model.name,
                version=model.version,
                tensors=kept,
                tokens=self.tokens if past is None else None,
                ttl=self.ttl,
                digest=model.digest,
                owner=self.call.owner,
                content=content_hash(model.name, model.version, [model.digest, request.data_type, *sent]),
                pinned=request.pinned,
                storage_error=error,
                past=past,
                truncated=self.tokens.truncated if self.tokens else 0,
            )
        )


def _compute(jobs: Sequence[MemoryJob]) -> Callable[[], list[Memory | Exception]]:
    (job,) = jobs
    found = job.project()
    return lambda: [job.keep(*found)]
