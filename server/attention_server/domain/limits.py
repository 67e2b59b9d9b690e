"""Limits on one request: sequences, outputs, and predicted bytes of scores and of the answer."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from attention_server.errors import TooLarge

MAX_SECONDS = 365 * 86_400.0  # for timeouts and times to live: longer ones would overflow in waits


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on one request.

    Attributes:
        sequences: sequences in a request.
        scores_bytes: predicted bytes that one sequence takes while it is computed: of a short one the scores of a site,
            heads x queries x keys x 4, and all of its stages; of a long one those that stand at once; and of the
            numbers of the head, rows x labels x 4.
        answer_bytes: bytes of all tensors of an answer, and of the candidates of its predictions.
        memory_ttl: default time to live of a memory after its last use, in seconds.
        outputs: output specifications in a request.
        work_bytes: bytes of the scores that are computed for all sequences and layers of a request, and of the head.
        slots: computations that may work on one sequence at once.
    """

    sequences: int
    scores_bytes: int
    answer_bytes: int
    memory_ttl: float
    outputs: int = 256
    work_bytes: int = 64 * 2**30
    slots: int = 1

    def check_outputs(self, count: int) -> None:
        """Check the number of outputs of a request.

        Raises:
            TooLarge: the number is over the limit.
        """
        if count > self.outputs:
            raise TooLarge(f"has {count} outputs; a request may name {self.outputs}", field="outputs")

    def check_sequences(self, count: int, field: str) -> None:
        """Check the number of sequences of a request.

        Args:
            count: number of sequences, those of batches included.
            field: path for the error.

        Raises:
            TooLarge: the number is over the limit.
        """
        if count > self.sequences:
            raise TooLarge(f"has {count} sequences; a request may have {self.sequences}", field=field)

    def check_pairs(self, heads: int, queries: int, keys: int, field: str) -> None:
        """Check the pairs of positions of one sequence, before a mask is made of them.

        Raises:
            TooLarge: the scores of one site alone are over the limit of a request's work.
        """
        needed = heads * queries * keys * 4
        if needed > self.work_bytes:
            fit = math.isqrt(self.work_bytes // (4 * heads))
            raise TooLarge(
                f"{queries} queries over {keys} keys with {heads} heads have {needed} bytes of scores; "
                f"{self.work_bytes} may be computed for one request (--max-work-mib): sequences of {fit} positions fit",
                field=field,
            )

    def check_peak(self, needed: int, queries: int, keys: int, fitting: Callable[[], int], field: str) -> None:
        """Check the memory that one sequence takes while it is computed.

        Args:
            needed: predicted bytes.
            queries: T.
            keys: S.
            fitting: returns the positions for which the limit suffices.
            field: path for the error.

        Raises:
            TooLarge: it is over the limit.
        """
        if needed > self.scores_bytes:
            fit = fitting()
            hint = f"{fit} positions fit" if fit else "ask for less at once: fewer layers, heads or rows, or a top k"
            raise TooLarge(
                f"{queries} queries over {keys} keys need {needed} bytes while scores and stages are computed; "
                f"{self.scores_bytes} may be used (--max-scores-mib): {hint}",
                field=field,
            )

    def check_head(self, needed: int, field: str) -> None:
        """Check the bytes of the numbers that a model's head computes for one sequence.

        Raises:
            TooLarge: they are over the limit of one sequence's scores.
        """
        if needed > self.scores_bytes:
            raise TooLarge(
                f"logits and predictions of this sequence need {needed} bytes, rows x labels x 4; {self.scores_bytes} "
                "may be used (--max-scores-mib): choose rows, or send shorter sequences",
                field=field,
            )

    def check_work(self, needed: int, longest: int) -> None:
        """Check the bytes of all scores of a request, so that no request keeps a slot for too long.

        Args:
            needed: bytes of scores that are computed, so far.
            longest: positions of the longest sequence.

        Raises:
            TooLarge: the sum is over the limit.
        """
        if needed > self.work_bytes:
            raise TooLarge(
                f"the sequences need at least {needed} bytes of scores and logits together; {self.work_bytes} may be "
                f"computed for one request (--max-work-mib): send fewer, or of at most "
                f"{int(longest * math.sqrt(self.work_bytes / needed))} positions",
                field="inputs",
            )

    def check_answer(self, size: int, fitting: Callable[[], int]) -> None:
        """Check the bytes of an answer's tensors.

        Args:
            size: bytes, so far.
            fitting: returns the positions of the last sequence alone for which the limit suffices.

        Raises:
            TooLarge: the sum is over the limit.
        """
        if size > self.answer_bytes:
            raise TooLarge(
                f"the answer would be at least {size} bytes; {self.answer_bytes} may be sent (--max-answer-mib): ask "
                f"for fewer sequences, heads or rows, reduce the heads, or take the top k; one sequence of {fitting()} "
                "positions fits",
                field="outputs",
            )
