"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

WRITTEN = Path("served-models")  # not `models`, which a checkout of this project tracks

Repository = Annotated[Path, typer.Option("--models", help="the repository to write to, made when absent")]
Version = Annotated[int, typer.Option(min=1, help="the new version; existing versions are never overwritten")]
License = Annotated[str, typer.Option("--license", help="the weights' license, an SPDX expression")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result on stdout as one JSON document")]
