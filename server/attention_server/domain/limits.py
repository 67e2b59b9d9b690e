"""Limits on one request: sequences, outputs, and predicted bytes of scores and of the answer."""

from dataclasses import dataclass

from attention_server.errors import TooLarge

MAX_SECONDS = 365 * 86_400.0  # for timeouts and times to live: longer ones would overflow in waits


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on one request.

    Attributes:
        sequences: sequences in a request.
        scores_bytes: bytes of one sequence's scores, heads x queries x keys x 4; of all of its stages; and of the
            numbers of the head, rows x labels x 4.
        answer_bytes: bytes of all tensors of an answer, and of the candidates of its predictions.
        memory_ttl: default time to live of a memory after its last use, in seconds.
        outputs: output specifications in a request.
        work_bytes: bytes of the scores of all sequences and all layers of a request together, and of the head.
    """

    sequences: int
    scores_bytes: int
    answer_bytes: int
    memory_ttl: float
    outputs: int = 256
    work_bytes: int = 8 * 2**30

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

    def check_scores(self, heads: int, queries: int, keys: int, field: str) -> None:
        """Check the bytes of one sequence's scores.

        Raises:
            TooLarge: the scores would need more bytes than the limit.
        """
        needed = heads * queries * keys * 4
        if needed > self.scores_bytes:
            raise TooLarge(
                f"{queries} queries over {keys} keys with {heads} heads need {needed} bytes of scores; "
                f"{self.scores_bytes} may be used: send shorter sequences",
                field=field,
            )

    def check_stages(self, needed: int, field: str) -> None:
        """Check the bytes of the stages of one sequence, of all layers asked for.

        Raises:
            TooLarge: the stages would need more bytes than the limit of one sequence's scores.
        """
        if needed > self.scores_bytes:
            raise TooLarge(
                f"the stages of this sequence need {needed} bytes before they are cut or reduced; {self.scores_bytes} "
                "may be used: ask for fewer layers at once, or send shorter sequences",
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
                "may be used: choose rows, or send shorter sequences",
                field=field,
            )

    def check_work(self, needed: int) -> None:
        """Check the bytes of all scores of a request, so that no request keeps a slot for too long.

        Args:
            needed: bytes of scores, so far.

        Raises:
            TooLarge: the sum is over the limit.
        """
        if needed > self.work_bytes:
            raise TooLarge(
                f"the sequences need at least {needed} bytes of scores and logits together; {self.work_bytes} may be "
                "used: send fewer or shorter ones",
                field="inputs",
            )

    def check_answer(self, size: int) -> None:
        """Check the bytes of an answer's tensors.

        Args:
            size: bytes, so far.

        Raises:
            TooLarge: the sum is over the limit.
        """
        if size > self.answer_bytes:
            raise TooLarge(
                f"the answer would be at least {size} bytes; {self.answer_bytes} may be sent: ask for fewer sequences, "
                "heads or rows, reduce the heads, or take the top k",
                field="outputs",
            )
