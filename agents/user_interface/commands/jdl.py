"""`grid jdl`: look at job descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents.user_interface.console import Json

app = typer.Typer(help="Look at job descriptions (JDL).", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def jdl() -> None:
    """Look at job descriptions (JDL)."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE.jdl", help="A job description.")],
    as_json: Json = False,
) -> None:
    """Print a job description with inherited and default attributes, or everything that is wrong with it.

    Needs no grid and no proxy. What is printed is JDL of the same jobs.

    \b
    Example:
      grid jdl check analysis.jdl && grid job submit analysis.jdl
    """
    from agents.user_interface import jdl

    jdl.check_command(file, as_json=as_json)
