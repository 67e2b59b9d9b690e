"""The README's commands run as written, and print the output that it shows."""

import contextlib
import io
import re
import shutil
import subprocess

import pytest
from serving import ROOT, clean_env, start_server

README = (ROOT / "README.md").read_text()
USING = (ROOT / "docs/using.md").read_text()
LINES = 70  # of the README: a screen


def blocks(language: str, text: str = README) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [content for said, content in fenced if said == language]


def expected(code: str) -> list[str]:
    """Return the expected output of each print: the comment behind it, or on the next line."""
    said = []
    lines = code.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("print("):
            comment = line.partition("  # ")[2] or following.removeprefix("# ")
            said.append(comment.partition(": heads")[0])  # a remark behind the value
    return said


def test_the_sessions_run_as_written() -> None:
    """The Python of README and docs/using.md runs on the embedded models and prints the output in its comments."""
    sessions = [*blocks("python"), *blocks("python", USING)]
    assert len(sessions) == 2
    with start_server(ROOT / "models") as server:
        for session in sessions:
            assert session.count("print(") == len(expected(session)) >= 2
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(session.replace("127.0.0.1:50051", server.grpc), {})
            assert printed.getvalue().splitlines() == expected(session)


def test_the_readme_is_a_screen() -> None:
    """The README stays short; documents have the rest, and each of them stands in the index by reader."""
    assert len(README.splitlines()) <= LINES
    index = (ROOT / "docs/README.md").read_text()
    for document in (ROOT / "docs").glob("*.md"):
        assert f"]({document.name})" in index or document.name == "README.md", document.name


def test_the_shell_commands_run_as_written() -> None:
    """curl answers, and the translation is right."""
    (commands,) = (block for block in blocks("") if "curl" in block)
    with start_server(ROOT / "models") as server:
        script = commands.replace("127.0.0.1:8080", server.rest) + f" --target {server.grpc}"
        script = script.replace("cross-attention\n", "cross-attention")
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert '"label":"Tater"' in done.stdout
    assert "vier tausend ein und zwanzig" in done.stdout


def test_make_run_shows_the_answer_of_the_readme() -> None:
    """`make run ONCE=1` prints the table that the README shows, and no address of the server, which has ended."""
    if not shutil.which("make"):
        pytest.fail("make is what the README's commands need")
    env = clean_env() | {"ATTENTION_REST_PORT": "0", "ATTENTION_GRPC_PORT": "0"}
    done = subprocess.run(["make", "run", "ONCE=1"], capture_output=True, text=True, check=True, cwd=ROOT, env=env)
    (table,) = (block for block in blocks("") if "from gave" in block)
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    for line in table.rstrip().splitlines():
        assert line in printed
    assert "the server has ended" in done.stdout
    assert "http://" not in done.stdout


def test_every_link_of_the_documents_leads_somewhere() -> None:
    """No document points at a file that is not there."""
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} -> {target}"
