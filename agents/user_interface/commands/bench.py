"""`grid bench`: measure a grid by work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents.user_interface.console import Json

app = typer.Typer(help="Measure a grid by work.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def replay(
    trace: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TRACE.swf]",
            help="A log in Standard Workload Format, also gzipped; else the small one that is shipped.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    speed: Annotated[float, typer.Option(help="Times of the log are divided by this.")] = 600.0,
    limit: Annotated[int | None, typer.Option(help="Only the first so many jobs.", min=1, max=1_000_000)] = None,
    burn: Annotated[bool, typer.Option("--burn", help="Jobs use a processor instead of sleeping.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="On the grid of this state folder; else on one started for this.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for replay.json and replay.svg.")] = Path("replay-out"),
    as_json: Json = False,
) -> None:
    """Submit the jobs of a log as its users did, through the real broker, and report how they fared.

    Makes users of its own in the grid's VOs. Exit 1 if a job is lost or run twice.

    \b
    Examples:
      grid bench replay
      grid bench replay LCG-2005-1.swf.gz --limit 300 --speed 2000 --state ~/.gridfabric
    """
    from agents.user_interface.replay.run import run

    run(trace, speed=speed, limit=limit, burn=burn, state=state, out=out, as_json=as_json)
