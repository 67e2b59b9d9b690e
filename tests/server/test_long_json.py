"""Long JSON documents are read and written in pieces, between which other threads run, and mean what they say."""

import gzip
import json
import random

import numpy as np
import orjson
import pytest
import requests
from attention_proto.duplicates import has_duplicates
from attention_server.codecs import document, number_lists
from attention_server.codecs.document import nested, parse
from attention_server.codecs.number_lists import NumberList, for_writing, put_back, take_out, write
from attention_server.codecs.oip import json as oip_json
from attention_server.errors import InvalidRequest, TooLarge
from serving import HANG

LEAVES = [1, -3, 2**63, 2**64 - 1, -(2**63), 1.5, -1e-7, True, None, "a", "[1,2", '\\"', "x:y", "\\"]
SEPARATORS = [(",", ":"), (", ", ": "), (" ,\n", " :\t")]


@pytest.fixture
def small_pieces(monkeypatch):
    """Short lists count as long ones, and are read in pieces of a few bytes."""
    monkeypatch.setattr(number_lists, "LONG", 8)
    monkeypatch.setattr(number_lists, "PIECE", 16)


def some_value(chance, depth):
    kind = chance.random()
    if depth == 0 or kind < 0.25:
        return chance.choice(LEAVES)
    if kind < 0.6:
        shape = [chance.choice((1, 1, 2, 3, 4, 7)) for _ in range(chance.randint(1, 3))]
        numbers = np.random.default_rng(chance.getrandbits(32))
        made = numbers.random(shape).round(3), numbers.integers(-5, 500, shape), numbers.random(shape) < 0.5
        return chance.choice(made).tolist()
    if kind < 0.8:
        return [some_value(chance, depth - 1) for _ in range(chance.randint(0, 4))]
    return {f"{name}:": some_value(chance, depth - 1) for name in chance.sample("abcdef", chance.randint(0, 4))}


def mutated(chance, text):
    changed = bytearray(text)
    for _ in range(chance.randint(1, 2)):
        at, byte = chance.randint(0, len(changed)), chance.choice(b'[]{},:"1 .-e\\0t')
        how = chance.choice(("insert", "delete", "replace"))
        changed[at : at + (how != "insert")] = b"" if how == "delete" else bytes([byte])
    return bytes(changed) or b"0"


def as_lists(value):
    if isinstance(value, NumberList):
        return value.to_list()
    if isinstance(value, dict):
        return {name: as_lists(each) for name, each in value.items()}
    return list(map(as_lists, value)) if isinstance(value, list) else value


def read(text):
    """Return the document by way of lists that are taken out; None where it is no JSON."""
    left, lists = take_out(text)
    try:
        return as_lists(put_back(orjson.loads(left), lists)), len(lists)
    except orjson.JSONDecodeError:
        return None, len(lists)


def test_lists_that_are_taken_out_change_no_document(small_pieces):
    """Of 3,000 documents, half of them damaged, each is read as by the parser alone, or refused as by it."""
    chance = random.Random(1)
    taken = refused = 0
    for _ in range(3000):
        text = json.dumps(some_value(chance, 4), separators=chance.choice(SEPARATORS)).encode()
        if chance.random() < 0.5:
            text = mutated(chance, text)
        try:
            expected = orjson.loads(text)
        except orjson.JSONDecodeError:
            expected = None
            refused += text != b"null"
        found, lists = read(text)
        assert found == expected, text
        taken += lists
    assert taken > 1000
    assert refused > 500


@pytest.mark.parametrize(
    "text",
    ["[[1,2],[3,4]5]", "[[1],2[]]", "[[1],[]2]", "[1,,2,3,4]", "[[1,2],[3,4],]", "[[1,2][3,4],5]", "[1 2,3 4,5]"],
)
def test_what_only_looks_like_lists_of_numbers(small_pieces, text):
    """Text that is no JSON stays none: neither brackets nor commas get lost on the way."""
    assert read(text.encode()) == (None, 0)


@pytest.mark.parametrize("wanted", ["float32", "int64", "int32", "bool"])
@pytest.mark.parametrize("made", ["floats", "wide", "integers", "mixed", "large", "truth", "several"])
def test_a_long_list_becomes_the_array_of_its_numbers(made, wanted):
    """A long list has the array, or the refusal, that the same list has where it is not long."""
    values = {
        "floats": [[0.1, 1e300]],
        "integers": [[1, -2]],
        "wide": [[1, 2**32 + 1]],
        "mixed": [[1, 0.5]],
        "large": [[2**63, -1]],
        "truth": [[True, False]],
        "several": [[1, True]],
    }[made] * 60_000
    (found,) = parse(b'{"x": ' + json.dumps(values).encode() + b"}").values()
    assert isinstance(found, NumberList)
    outcomes = []
    for each in (found, values):
        try:
            outcomes.append(nested(each, np.dtype(wanted), "x").tobytes())
        except InvalidRequest as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    if (made, wanted) in {("wide", "int32"), ("large", "int64")}:
        assert "numbers that fit" in outcomes[0]  # an integer is never another than the one that was sent


def test_no_other_thread_waits_long_for_a_long_document(monkeypatch):
    """The parser, which lets no other thread run, is given pieces of 64 KiB of 4 MB, and the writer likewise."""
    sizes, loads, dumps = [], orjson.loads, orjson.dumps
    matrix = np.random.default_rng(0).random((300, 1500)).round(6)
    text = b'{"query": ' + orjson.dumps(matrix, option=orjson.OPT_SERIALIZE_NUMPY) + b', "text": "[1,2]"}'

    def measured_loads(piece):
        sizes.append(len(piece))
        return loads(piece)

    def measured_dumps(*given, **options):
        piece = dumps(*given, **options)
        sizes.append(len(piece))
        return piece

    monkeypatch.setattr(orjson, "loads", measured_loads)
    monkeypatch.setattr(orjson, "dumps", measured_dumps)
    content = parse(text)
    assert np.array_equal(nested(content["query"], np.dtype(np.float64), "query"), matrix)
    assert content["text"] == "[1,2]"
    assert max(sizes) <= number_lists.PIECE + 2
    written = write({"values": for_writing(matrix)})
    assert max(sizes) < 4 * number_lists.PIECE_OF_ARRAY
    assert written == dumps({"values": matrix}, option=orjson.OPT_SERIALIZE_NUMPY)


@pytest.mark.parametrize("shape", [(0, 5), (40_000, 1), (3, 200, 30), (1, 1, 40_000), (2, 1, 9000)])
@pytest.mark.parametrize("kind", ["float32", "int64", "bool"])
def test_arrays_are_written_in_pieces_as_in_one(shape, kind):
    """An answer has the same bytes whether its arrays are written in pieces or by the writer alone."""
    array = (np.random.default_rng(1).random(shape) * 100).astype(kind)
    text = orjson.dumps([{"a": array}, array, "b"], option=orjson.OPT_SERIALIZE_NUMPY)
    assert write([{"a": for_writing(array)}, for_writing(array), "b"]) == text


def test_values_without_number_outside_of_lists_of_numbers():
    """Two million values that are read one by one are too many; as one list of numbers they are not."""
    count = document.MAX_VALUES + 2
    with pytest.raises(TooLarge, match="2000000 values outside of long lists of numbers"):
        parse(b'["' + b'","'.join([b""] * count) + b'"]')
    assert parse(b"[" + b",".join([b"1"] * count) + b"]").shape == (count,)


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/models/dot/load"])
@pytest.mark.parametrize("packed", [False, True])
def test_bodies_that_are_parsed_on_the_loop_are_small(server, path, packed):
    """A route without tensors or texts refuses a body over 64 KiB, as it is sent and as it is when inflated."""
    body = b'{"ready": true' + b" " * 65_536 + b"}"
    headers = {"content-encoding": "gzip"} if packed else {}
    sent = gzip.compress(body) if packed else body
    answer = requests.post(server.url + path, data=sent, headers=headers, timeout=HANG)
    assert (answer.status_code, "65536" in answer.text) == (413, True)


class CountedList(list):
    """A list that counts how often it is gone through."""

    times = 0

    def __iter__(self):
        CountedList.times += 1
        return super().__iter__()


def test_deep_lists_of_strings_are_read_once():
    """Strings beside deep lists are gone through once, not once for each level."""
    CountedList.times = 0
    deep = ["b"]
    for _ in range(900):
        deep = [deep]
    assert list(oip_json._strings(CountedList(["a", deep, "c"]), "data")) == ["a", "b", "c"]
    assert CountedList.times == 1


def test_names_in_lists_as_deep_as_the_parser_reads():
    """A document nested as deeply as the parser reads has its names counted, with and without a duplicate."""
    text = b"[" * 1020 + b'{"a:":1,"b":2}' + b"]" * 1020
    assert not has_duplicates(text, orjson.loads(text))
    twice = text.replace(b"b", b"a:")
    assert has_duplicates(twice, orjson.loads(twice))


def test_little_of_a_long_unknown_name_is_compared(monkeypatch):
    """Names that resemble an unknown one are searched by its first 64 characters, however long it is."""
    compared = []
    monkeypatch.setattr(document.difflib, "get_close_matches", lambda name, *_: compared.append(name) or [])
    with pytest.raises(InvalidRequest, match="no such field"):
        document.fields({"x" * 10**6: 1}, "", ("query",))
    assert list(map(len, compared)) == [64]
