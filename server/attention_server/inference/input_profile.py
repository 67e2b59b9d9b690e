"""The profile of an input: its predicted cost, its size and its company, which follow from its shapes."""

from typing import NamedTuple

from attention_server.inference.sharing import Company


class InputProfile(NamedTuple):
    """Facts that follow from the shapes of a sequence and from the plan.

    Attributes:
        queries, keys: T and S.
        work_bytes: of the scores of all layers that are computed, or of the stages asked for, if these are more.
        stage_bytes: predicted, while it is computed; of a short sequence of a site's scores, or of the stages asked for
            before rows and heads are chosen or reduced, if these are more.
        head_bytes: of the numbers that the head computes.
        input_bytes: of the prepared sequence.
        answer_bytes: of its outputs.
        peak_bytes: at most in memory while it is computed, beside input and answer.
        seconds: predicted cost of the sequence by itself, before correction.
        company: the sequences that it may share a pass with.
    """

    queries: int
    keys: int
    work_bytes: int
    stage_bytes: int
    head_bytes: int
    input_bytes: int
    answer_bytes: int
    peak_bytes: int
    seconds: float
    company: Company
