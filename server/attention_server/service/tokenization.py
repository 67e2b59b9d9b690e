"""The tokens of texts, as a model reads them."""

from attention_server.domain.call import CallContext
from attention_server.domain.limits import Limits
from attention_server.domain.messages import Tokens
from attention_server.domain.tokenization import TOKEN_BYTES, Tokenization, TokenizeRequest
from attention_server.errors import InvalidRequest, TooLarge, join_path
from attention_server.inference.model import LoadedModel
from attention_server.inference.tokenizer import TextTokenizer


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
    count, most = 0, limits.answer_bytes // TOKEN_BYTES
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
