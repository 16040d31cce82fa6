"""`grid accounting`: what was used, by whom and where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.commands.fabric import State
from agents.user_interface.console import Json

app = typer.Typer(help="What jobs used: reports, records, checks.", no_args_is_help=True, rich_markup_mode=None)

Since = Annotated[
    str, typer.Option(help="Runs that ended in the last ... (24h, 30d).", callback=console.duration_option)
]


@app.command()
def report(
    since: Since = "30d",
    by: Annotated[
        str, typer.Option(help="Group by these, with commas: vo, site, owner (or user), ce, fqan, account, month.")
    ] = "vo,site",
    chart: Annotated[Path | None, typer.Option(help="Also draw it: a PNG or SVG file.", dir_okay=False)] = None,
    as_json: Json = False,
) -> None:
    """Show what was used: runs, wall, processor and core hours; of your own jobs and those of your VO.

    \b
    Examples:
      grid accounting report
      grid accounting report --by vo,month --since 365d --chart usage.png
    """
    from agents.user_interface import accounting

    names = {"user": "owner", "dn": "owner"}
    groups = [names.get(word, word) for word in console.words_of(by)]
    seconds = max(1, console.parse_duration(since))
    console.run_async(accounting.report_command(seconds, groups, chart, as_json=as_json))


@app.command()
def export(
    directory: Annotated[Path, typer.Option("--dir", "-d", help="Where to write the messages.", file_okay=False)],
    since: Since = "24h",
    until: Annotated[
        str | None, typer.Option(help="... up to so long ago (else until now).", callback=console.duration_option)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write usage records as APEL messages (individual jobs, version 0.3), a thousand in a file.

    \b
    Example:
      grid accounting export --dir outgoing --since 24h
    """
    from agents.user_interface import accounting

    seconds = (console.parse_duration(since), console.parse_duration(until) if until else 0)
    if seconds[0] <= seconds[1]:
        raise typer.BadParameter(f"--since {since} is no longer ago than --until {until}")
    console.run_async(accounting.export_command(*seconds, directory, as_json=as_json))


@app.command()
def check(
    since: Since = "24h",
    batch: Annotated[
        Path | None,
        typer.Option(
            help="Slurm's own records of --site: a file of jobcomp/filetxt, or what sacct --parsable2 prints."
        ),
    ] = None,
    site: Annotated[str, typer.Option(help="Whose batch system wrote --batch.")] = "",
    workers: Annotated[bool, typer.Option(help="Hold them against what workers wrote, too.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Hold usage records against jobs, and against what batch systems wrote, as operator. Exit 1 if they disagree.

    \b
    Example:
      grid accounting check --since 7d --workers
      grid accounting check --since 7d --site CERN --batch /var/log/slurm/jobcomp.log
    """
    from agents.user_interface import accounting

    if (batch is None) != (not site):
        raise typer.BadParameter("--batch and --site go together")
    seconds = max(1, console.parse_duration(since))
    console.run_async(accounting.check_command(seconds, state, batch, site, workers=workers, as_json=as_json))
