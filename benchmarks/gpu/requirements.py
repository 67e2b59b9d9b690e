"""Print the requirements of `make gpu`, one a line: those of the server for a GPU in pyproject.toml, and onnx."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def requirements() -> list[str]:
    """Return the requirements, without the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *extras["server-common"], *extras["server-gpu"]]
    onnx = [each for each in extras["export"] if each.startswith("onnx>")]
    return [each for each in (*named, *onnx) if not each.startswith(project["name"])]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements()) + "\n")
