"""The tokens that a model reads of texts."""

from collections.abc import Callable, Sequence

from attention_server.domain.call import CallContext
from attention_server.domain.limits import Limits
from attention_server.domain.messages import Tokens
from attention_server.domain.tokenization import HELD_TOKEN_BYTES, TOKEN_WORK_BYTES, Tokenization, TokenizeRequest
from attention_server.errors import InvalidRequest, TooLarge, join_path
from attention_server.inference.model import LoadedModel
from attention_server.inference.tokenizer import TextTokenizer
from attention_server.scheduling.job import Job

SECONDS_OF_CHARACTER = 1e-6  # some tokenizers take a third


def tokenize_job(
    request: TokenizeRequest, model: LoadedModel, limits: Limits, call: CallContext
) -> Job[TokenizeRequest, Tokenization]:
    """Return the job of a request for tokens, with the predicted cost of its characters and bytes of as many tokens."""
    characters = sum([len(each.text) + len(each.text_pair or "") for each in request.inputs])
    held = HELD_TOKEN_BYTES * min(characters, limits.answer_bytes // TOKEN_WORK_BYTES)

    def run(_: Sequence[TokenizeRequest]) -> Callable[[], list[Tokenization | Exception]]:
        call.record.mark_running()
        try:
            found = tokenize(request, model, limits, call)
        finally:
            call.record.mark_computed()
        return lambda: [found]

    call.record.mark_submitted()
    cost = SECONDS_OF_CHARACTER * characters
    return Job(request, run, deadline=call.deadline, caller=call.caller, cost=cost, size=held)


def tokenize(request: TokenizeRequest, model: LoadedModel, limits: Limits, call: CallContext) -> Tokenization:
    """Tokenize every text.

    Raises:
        InvalidRequest: the model reads no such text.
        TooLarge: there are too many texts, or tokens.
        DeadlineExceeded, Cancelled: the call ended between two texts.
    """
    if not request.inputs:
        raise InvalidRequest("send at least one text", field="inputs")
    limits.check_sequences(len(request.inputs), "inputs")
    reader, takes_pairs = _reader(request, model)
    results: list[Tokens] = []
    count, most = 0, limits.answer_bytes // TOKEN_WORK_BYTES
    for each in request.inputs:
        call.raise_if_ended()
        pair_field = join_path(each.path, "text_pair")
        if each.text_pair is not None and not takes_pairs:
            raise InvalidRequest("this model takes no pairs of texts", field=pair_field)
        field = join_path(each.path, "text")
        pair = each.text_pair
        results.append(reader.read(each.text, field, truncate=request.truncate, pair=pair, pair_field=pair_field))
        count += len(results[-1].ids)
        if count > most:
            raise TooLarge(
                f"has more than {most} tokens, as many as an answer may have; send fewer texts", field="inputs"
            )
    return Tokenization(model.name, model.version, tuple(results))


def _reader(request: TokenizeRequest, model: LoadedModel) -> tuple[TextTokenizer, bool]:
    """Return the tokenizer that a request asks for, and whether it takes pairs."""
    if request.memory:
        if model.memory_reader is None:
            raise InvalidRequest("this model reads no memory text", field="memory")
        return model.memory_reader, False
    if model.reader is None:
        raise InvalidRequest("this model reads no text", field="model")
    return model.reader, model.manifest.text.takes_pairs
