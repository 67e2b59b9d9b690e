"""What a type checker, and a caller who mistypes, are told."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from attention_client import Ablation, AsyncAttentionClient, AttentionClient, InvalidRequest, OutputSpec, Sequence
from serving import HANG, ROOT

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PREAMBLE = "from attention_client import AttentionClient\nclient = AttentionClient()\n"
FORMS = """
import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import assert_type
from attention_client import AsyncAttentionClient, AttendResult, AttentionClient, AttentionError

def blocking(client: AttentionClient, choice: bool) -> None:
    assert_type(client.attend_many("m", ["a"], version=1), Iterator[AttendResult])
    assert_type(client.attend_many("m", ["a"], return_exceptions=True), Iterator[AttendResult | AttentionError])
    assert_type(client.attend_many("m", ["a"], return_exceptions=choice), Iterator[AttendResult | AttentionError])

async def awaiting(client: AsyncAttentionClient) -> None:
    assert_type(client.attend_many("m", ["a"], timeout=1), AsyncIterator[AttendResult])
    assert_type(client.attend_many("m", ["a"], return_exceptions=True), AsyncIterator[AttendResult | AttentionError])
    assert_type(await client.attend("m", text="a"), AttendResult)
"""
WRONG = "client.attend_many('m', ['a'], verion=1)\nclient.attend('m', txt='a')\n"


def snippets() -> list[str]:
    """Return the Python of the documents; of a fragment, behind a client."""
    text = "\n".join(each.read_text() for each in DOCUMENTS)
    found = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [each if "import" in each else PREAMBLE + each for each in found]


def test_snippets_are_typed(tmp_path):
    """The Python of the README and the documents passes mypy --strict, and `attend_many` has a type for each form."""
    programs = [*snippets(), FORMS, PREAMBLE + WRONG]
    files = [tmp_path / f"snippet_{i}.py" for i in range(len(programs))]
    for file, program in zip(files, programs, strict=True):
        file.write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "-O", "json", *files]
    command += ["--ignore-missing-imports"]  # the clients of others, which are installed elsewhere
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG, cwd=ROOT)
    assert len(programs) >= 7
    found = [json.loads(line) for line in done.stdout.splitlines()]
    # By name: mypy's cache repeats errors of an equal program with the path of the run before.
    expected = {(files[-1].name, "call-overload"), (files[-1].name, "call-arg")}
    assert {(Path(each["file"]).name, each["code"]) for each in found} == expected, done.stdout + done.stderr


@pytest.mark.parametrize("kind", [AttentionClient, AsyncAttentionClient])
def test_a_mistyped_keyword_is_told_the_nearest_one(kind):
    """An unknown keyword is a TypeError with the name that was meant, before anything is sent."""

    def call(method: str, **given: object) -> None:
        made = getattr(kind.__new__(kind), method)("m", **given)
        if inspect.iscoroutine(made):
            made.send(None)

    for method, given, words in (
        ("attend", {"ouputs": []}, "attend() got an unexpected keyword argument 'ouputs'; did you mean 'outputs'?"),
        ("attend", {"txt": "a"}, "attend() got an unexpected keyword argument 'txt'; did you mean 'text'?"),
        ("attend", {"top_k": 2}, 'it is an option of an output: outputs=[{"name": "weights", "top_k": ...}]'),
        ("attend_many", {"sequences": (), "return_exception": True}, "did you mean 'return_exceptions'?"),
        ("create_memory", {"memory_txt": "a"}, "did you mean 'memory_text'?"),
        ("tokenize", {"zzz": 1}, "tokenize() got an unexpected keyword argument 'zzz'; it takes memory, model"),
    ):
        with pytest.raises(TypeError, match=re.escape(words)):
            call(method, **given)
    with pytest.raises(TypeError, match=r"Client\(\) .* 'tokn'; did you mean 'token'"):
        kind(tokn="a")


def test_parts_of_a_request_are_told_the_nearest_one(ask, target):
    """So do a sequence, an output, which may be a dict, and an ablation."""
    for kind, given, near in ((Sequence, "txt", "text"), (OutputSpec, "topk", "top_k"), (Ablation, "head", "heads")):
        words = f"{kind.__name__}() got an unexpected keyword argument '{given}'; did you mean '{near}'?"
        with pytest.raises(TypeError, match=re.escape(words)):
            kind(**{given: 1})
    with pytest.raises(InvalidRequest, match="did you mean 'top_k'") as caught:
        ask(target, "attend", "m", text="a", outputs=[{"name": "weights", "topk": 1}])
    assert caught.value.field == "outputs[0]"


@pytest.mark.parametrize("texts", [["a", "b"], ("a",), np.array(["a"])], ids=["a list", "a tuple", "an array"])
def test_a_list_of_texts_is_told_where_it_belongs(ask, target, texts):
    """A list where one text is meant is refused with the methods that take several."""
    with pytest.raises(InvalidRequest, match="attend_many and attend_batch take several") as caught:
        ask(target, "attend", "multi-head", text=texts)
    assert caught.value.field == "inputs[0].text"


@pytest.mark.parametrize("one", ["a text", Sequence(text="a text")], ids=["a text", "a sequence"])
def test_one_sequence_is_not_several(ask, attend_many, target, one):
    """One text where several are meant is refused; it would be a text a letter."""
    with pytest.raises(InvalidRequest, match="call attend") as caught:
        ask(target, "attend_batch", "multi-head", one)
    assert caught.value.field == "sequences"
    with pytest.raises(InvalidRequest, match="call attend"):
        list(attend_many(target, "multi-head", one))
