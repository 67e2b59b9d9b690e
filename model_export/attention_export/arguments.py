"""Arguments that several commands take."""

from typing import Annotated

import typer

Version = Annotated[int, typer.Option(min=1, help="the new version; existing versions are never overwritten")]
License = Annotated[str, typer.Option("--license", help="the weights' license, an SPDX expression")]
