"""`grid drill`: play an attack on a real grid and read who refused it after how long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.console import Json

app = typer.Typer(help="Security drills with a stopwatch.", no_args_is_help=True, rich_markup_mode=None)
DEFAULT_OUT = Path("drill-out")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the drills.

    \b
    Example:
      grid drill list
    """
    from agents.user_interface.drill.drills import DRILLS

    if as_json:
        console.print_json([{"name": drill.name, "story": drill.story} for drill in DRILLS])
    else:
        console.print_table(("drill", "story"), [(drill.name, drill.story) for drill in DRILLS])


@app.command("run")
def run(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="As grid drill list shows them.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All drills.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="On the grid of this state folder; else on one started for this.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for drills.json and drills.html.")] = DEFAULT_OUT,
    seed: Annotated[int | None, typer.Option(help="The order, names and choices of an earlier run.")] = None,
    speed: Annotated[float, typer.Option(help="Lifetimes that a drill waits out, and polls, this much faster.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Play drills. Each makes users of its own, attacks, defends, measures from outside, and puts things right again.

    Exit 1 if a drill is failed.

    \b
    Examples:
      grid drill run user-banned
      grid drill run --all --out ./drills
      grid drill run --all --seed 4711
    """
    from agents.user_interface.drill import run as drill

    drill.run(names or [], everything=everything, state=state, out=out, seed=seed, speed=speed, as_json=as_json)


@app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where drills.json is.")] = DEFAULT_OUT,
    as_json: Json = False,
) -> None:
    """Print the report of an earlier run, and write its page again.

    Exit 1 if a drill was failed.

    \b
    Example:
      grid drill report ./drills
    """
    from agents.user_interface.drill import report as found

    found.show(found.load(folder), folder, as_json=as_json)
