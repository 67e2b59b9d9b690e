"""Training on user data: invalid rows and options."""

import pytest
from attention_export.own_data import DataError, Options, own_data

from tests.export.own_rows import (
    generate,
    signal,
    train,
    write,
)

VECTORS = '{"vectors": [[1, 2], [3, 4]], "label": "a"}'
TEXT = '{"text": "one two", "label": "a"}'
TAGS = '{"text": "one two", "labels": ["a", "b"]}'
NAMED = '{"text": "one two", "label": {"x": "a", "y": "b"}}'


class TestErrors:
    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ([TEXT, '{"text": '], r"line 2: the line is no JSON \(.*; write one object a line"),
            ([TEXT, "[" * 100_000], r"line 2: the line is no JSON"),
            (["[1]"], r"line 1: the line is a list; write an object"),
            ([], r"has no rows; write one JSON object a line"),
            (['{"label": "a"}'], r"line 1: text is missing, and so is tokens and vectors; give one"),
            (['{"text": "a", "tokens": ["a"], "label": "a"}'], r"text comes with tokens; give one of them"),
            (['{"text": 3, "label": "a"}'], r"line 1: text is a number; write a string"),
            (['{"text": " ", "label": "a"}'], r"line 1: text has no words in it; write at least one"),
            (['{"tokens": [], "label": "a"}'], r"tokens is empty; write a list of words, at least one"),
            (['{"tokens": ["a", "b c"], "label": "a"}'], r"tokens\[1\] is 'b c'; write one word"),
            (['{"tokens": ["a", null], "label": "a"}'], r"tokens\[1\] is null; write one word"),
            (['{"vectors": [], "label": "a"}'], r"vectors is empty; write a list of vectors"),
            (['{"vectors": [1, 2], "label": "a"}'], r"vectors\[0\] is a number; write a list of numbers"),
            (['{"vectors": [[]], "label": "a"}'], r"vectors\[0\] is empty; write a list of numbers"),
            (['{"vectors": [[1, "2"]], "label": "a"}'], r"vectors\[0\] has a string in it; write numbers only"),
            (['{"vectors": [[1, true]], "label": "a"}'], r"vectors\[0\] has true in it; write numbers only"),
            (['{"vectors": [[1, 2], [3]], "label": "a"}'], r"vectors\[1\] has 1 numbers where vectors\[0\] has 2"),
            (['{"vectors": [[1], [NaN]], "label": "a"}'], r"vectors\[1\] has nan in it; write finite numbers"),
            (
                [f'{{"vectors": [[1{"0" * 400}]], "label": "a"}}'],
                r"vectors\[0\] has 10{19} in it; write finite numbers",
            ),
            (['{"vectors": [[1e39]], "label": "a"}'], r"vectors\[0\] has 1e\+39 in it; write finite numbers"),
            ([VECTORS, "", '{"vectors": [[1]], "label": "b"}'], r"line 3: .* of 1 numbers where line 1 has 2"),
            ([TEXT, VECTORS], r"line 2: the sequence is of another kind than in line 1; use words in all rows, or"),
            (['{"text": "a"}'], r"line 1: label is missing; give label for the whole sequence, or labels, one for"),
            (['{"text": "a", "label": "a", "labels": ["a"]}'], r"label comes with labels; give label for"),
            ([TEXT, TAGS], r"line 2: label is in some rows and labels in others; use the same in all"),
            (['{"text": "a", "label": 1}'], r"line 1: label is a number; write a string, or an object of strings"),
            (['{"text": "a", "label": ""}'], r"line 1: label is empty; write a string"),
            (['{"text": "a", "label": {}}'], r"line 1: label is an empty object; name at least one label"),
            (['{"text": "a", "label": {"x": ["a"]}}'], r"line 1: label\.x is a list; write a string"),
            (['{"text": "a", "label": {"a b": "a"}}'], r"label has the name 'a b'; use a letter"),
            (['{"text": "a", "label": {"output": "a"}}'], r"label has the name 'output'; use a letter"),
            ([NAMED, TEXT], r"line 2: label names label where line 1 names x, y; use the same names in all rows"),
            (['{"text": "one two", "labels": "a"}'], r"labels is a string; write a list with a label for each"),
            (['{"text": "one two", "labels": ["a", 1]}'], r"labels\[1\] is a number; write a string"),
            ([TAGS, '{"text": "one two", "labels": ["a"]}'], r"line 2: labels has 1 labels for a sequence of 2"),
            ([TEXT, TEXT], r"rows\.jsonl: label is 'a' everywhere; there must be at least two classes to learn"),
            (['{"text": "a", "memory_text": "b", "label": "a"}'], r"memory_text is for cross_attention; leave it out"),
            ([TEXT, TEXT.replace('"a"', '"b"')] * 4, r"has 8 rows, of which 2 would be held out; at least 5 are"),
        ],
    )
    def test_an_unusable_row_is_refused(self, tmp_path, rows, said):
        """An unusable row is an error with file, line, field and a valid alternative."""
        with pytest.raises(DataError, match=said) as caught:
            own_data(write(tmp_path, rows), "mine", Options("self_attention"))
        assert str(caught.value).startswith(str(tmp_path / "rows.jsonl"))
        assert len(str(caught.value)) < len(str(tmp_path)) + 300

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            (TEXT, "line 1: memory_text is missing, and so is memory_tokens and memory_vectors; give one"),
            ('{"text": "a", "memory_vectors": [[1]], "label": "a"}', "line 1: the memory is of another kind than the"),
            ('{"text": "a", "memory_tokens": ["b c"], "label": "a"}', r"memory_tokens\[0\] is 'b c'; write one word"),
        ],
    )
    def test_rows_of_cross_attention(self, tmp_path, row, said):
        with pytest.raises(DataError, match=said):
            own_data(write(tmp_path, [row]), "mine", Options("cross_attention"))

    def test_bytes_that_are_no_text(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b'{"text": "\xff\xfe", "label": "a"}\n')
        with pytest.raises(DataError, match="line 1: the line is no JSON"):
            own_data(path, "mine", Options("self_attention"))

    def test_a_row_longer_than_the_limit(self, tmp_path):
        path = write(tmp_path, [{"text": "one two three", "label": label} for label in "ab" * 15])
        with pytest.raises(ValueError, match=r"max_tokens is 2, but .*rows\.jsonl has a row of 3; give 3 or more"):
            own_data(path, "mine", Options("self_attention", max_tokens=2))

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"epochs": 1, "steps": 1}, "two ways to say one thing"),
            ({"held_out": 1.0}, "held_out is 1; give a share between 0 and 1"),
            ({"block": "dot_product", "width": 3}, "dot_product works on your vectors as they are"),
            ({"max_tokens": 64}, "max_tokens is for words; vectors may be served at any length"),
            ({"heads": 3}, "3 heads do not divide the width 64"),
            ({"block": "dot_product", "heads": 2}, "2 heads do not divide the width 5"),
        ],
    )
    def test_options_that_do_not_fit(self, tmp_path, options, said):
        with pytest.raises(ValueError, match=said):
            train(generate(tmp_path, signal, 30), Options(**{"block": "multi_head", **options}))
