"""The packages of the images are locked, listed and audited; the server's code loads nothing that could run code."""

import ast
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from serving import ROOT

LOCKS = ROOT / "deploy/locks"
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIG["project"]
EXTRAS = ("server", "server-gpu")
# The packages of the wheel, without the exporter.
SERVING = [
    ROOT / "proto/attention_proto",
    ROOT / "client/attention_client",
    ROOT / "client/attention_batch",
    ROOT / "server/attention_server",
]


def locked(name: str) -> dict[str, Version]:
    """Every package of a lock, and its version; each must have a hash."""
    entries = (LOCKS / f"{name}.lock").read_text().replace("\\\n", " ").splitlines()
    found = {}
    for entry in entries:
        if entry.startswith("#"):
            continue
        requirement = re.fullmatch(r"([\w.-]+)==(\S+)(?: ; [^-]+)?((?: +--hash=sha256:[0-9a-f]{64})+)", entry)
        assert requirement, f"{name}: {entry[:80]}"
        found[canonicalize_name(requirement[1])] = Version(requirement[2])
    return found


def declared(extra: str | None = None) -> Iterator[Requirement]:
    """Everything that the project, or one of its extras, asks for, through extras of its own."""
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            for each in requirement.extras:
                yield from declared(each)
        else:
            yield requirement


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_lock_is_of_this_project(extra):
    """Each dependency that is declared is locked, at a version that will do; `make lock` makes it so."""
    versions = locked(extra)
    for requirement in [*declared(), *declared(extra)]:
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{requirement} is not locked: run `make lock`"
        assert requirement.specifier.contains(versions[name]), f"{requirement}, but {versions[name]} is locked"
    assert "torch" not in versions


def test_the_build_is_locked():
    """The build requirements of the wheel are locked too."""
    versions = locked("build")
    for requirement in map(
        Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    ):
        assert requirement.specifier.contains(versions[requirement.name])


def bundled() -> dict[str, str]:
    """Return the npm packages of the page's bundle with versions, from the file of licences."""
    licences = (ROOT / "server/attention_server/rest/page/LICENSES.txt").read_text()
    return dict(re.findall(r"^([\w@/.-]+) (\d+\.\d+\.\d+)$", licences, re.MULTILINE))


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_sbom_lists_what_is_locked(extra):
    """The SBOM is CycloneDX, has this version of the project, and lists exactly the locked and bundled packages."""
    document = json.loads((LOCKS / f"{extra}.cdx.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    component = document["metadata"]["component"]
    assert (component["name"], component["version"]) == (PROJECT["name"], PROJECT["version"])
    pypi, npm = (
        [each for each in document["components"] if each["purl"].startswith(f"pkg:{kind}/")] for kind in ("pypi", "npm")
    )
    assert len(pypi) + len(npm) == len(document["components"])
    assert {canonicalize_name(each["name"]): Version(each["version"]) for each in pypi} == locked(extra)
    assert {each["name"]: each["version"] for each in npm} == bundled(), "run `make sbom`"
    assert all(each["purl"].split("/", 1)[1] == f"{each['name']}@{each['version']}" for each in document["components"])
    assert document["dependencies"][0]["dependsOn"] == sorted(each["purl"] for each in document["components"])


def test_what_is_bundled_is_locked():
    """Each package in the page's bundle is locked by its hash, at its version; all that the page asks for is there."""
    packages = json.loads((ROOT / "server/web/package-lock.json").read_text())["packages"]
    for name, version in bundled().items():
        package = packages[f"node_modules/{name}"]
        assert package["version"] == version
        assert package["integrity"].startswith("sha512-")
        assert not package.get("dev"), f"{name} is bundled, but only declared for development"
    assert bundled().keys() >= packages[""]["dependencies"].keys()


def test_the_bundle_names_no_registry():
    """The lock of npm packages names no registry to fetch packages from."""
    assert "resolved" not in (ROOT / "server/web/package-lock.json").read_text()


def test_locks_name_no_index():
    """A lock identifies packages by hashes and names no index to fetch packages from."""
    for file in sorted(LOCKS.iterdir()):
        text = file.read_text()
        assert "index-url" not in text
        assert "find-links" not in text
        assert not re.search(r"https?://\S*(pypi|simple)", text)


def test_an_audit_without_a_database_says_so():
    """Where the database of vulnerabilities cannot be reached, an audit says so, and does not pass."""
    nowhere = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), "http://127.0.0.1:9")
    env = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | nowhere
    done = subprocess.run([ROOT / "deploy/audit.sh"], env=env, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 2, done
    assert done.stderr.count("not audited") == 3
    assert "nothing is known" not in done.stdout


# --- nothing is read that could run code ---

MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "torch",
    "yaml",
    "jsonpickle",
}
CALLS = {"eval", "exec", "compile", "__import__", "import_module", "system", "popen", "read_pickle", "load_module"}


def unsafe(source: str) -> list[str]:
    """Return every place in a program that unpickles, evaluates text, or imports by a computed name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: import {each.name}" for each in node.names if each.name.split(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(f"{node.lineno}: from {node.module}")
        if isinstance(node, ast.Call):
            function = node.func
            owner = (
                function.value.id
                if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
                else ""
            )
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in CALLS and owner != "re":
                found.append(f"{node.lineno}: {name}()")
            for keyword in node.keywords:
                safe = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                if keyword.arg in ("allow_pickle", "shell") and not safe:
                    found.append(f"{node.lineno}: {keyword.arg}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import os, marshal",
        "from torch.serialization import load",
        "def f():\n    import yaml",
        "eval('1')",
        "exec(text)",
        "compile(text, '', 'exec')",
        "builtins.eval(text)",
        "importlib.import_module(name)",
        "os.system(text)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "subprocess.run(text, shell=True)",
        "pandas.read_pickle(path)",
    ],
)
def test_the_search_finds(source):
    """The search finds each kind of dangerous call."""
    assert unsafe(source)


@pytest.mark.parametrize(
    "source", ["np.load(path)", "np.load(path, allow_pickle=False)", "re.compile('a')", "json.loads(a)"]
)
def test_the_search_leaves_alone(source):
    """Harmless code is not reported."""
    assert not unsafe(source)


def test_serving_reads_nothing_that_could_run_code():
    """No file of the server unpickles, evaluates text, or imports by a computed name."""
    files = [file for package in SERVING for file in sorted(package.rglob("*.py"))]
    assert len(files) > 40
    found = {str(file.relative_to(ROOT)): unsafe(file.read_text()) for file in files}
    assert {file: places for file, places in found.items() if places} == {}


def test_every_package_that_serves_is_searched():
    """A package that joins the wheel is searched too, unless it only makes models."""
    wheel = CONFIG["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {ROOT / package for package in wheel} - {ROOT / "model_export/attention_export"} == set(SERVING)
    assert all(isinstance(package, Path) and package.is_dir() for package in SERVING)
