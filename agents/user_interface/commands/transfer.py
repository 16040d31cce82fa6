"""`grid transfer`: copies between storage elements, queued and looked after by the transfer agent."""

from __future__ import annotations

from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.commands.data import AsOperator
from agents.user_interface.commands.fabric import State
from agents.user_interface.console import Json

app = typer.Typer(
    help="Queue copies between storage elements and follow them.", no_args_is_help=True, rich_markup_mode=None
)

Wait = Annotated[bool, typer.Option("--wait", "-w", help="Stay until all files have ended; exit 1 if one failed.")]


@app.command()
def submit(
    lfns: Annotated[list[str], typer.Argument(metavar="LFN...", help="Files, or directories: all files below.")],
    to: Annotated[str, typer.Option("--to", help="Storage element: its name or site; or https:, davs:, gsiftp: URL.")],
    source: Annotated[str, typer.Option("--from", help="Read only from this storage element.")] = "",
    priority: Annotated[int, typer.Option("--priority", min=-10, max=10, help="Higher goes first.")] = 0,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Queue files for a copy to a storage element; each is verified and registered. Prints the id of the transfer.

    \b
    Examples:
      grid transfer submit lfn:/grid/cms/mc/run1.root --to RAL
      grid transfer submit lfn:/grid/cms/mc --to RAL --priority 5 --wait
      grid transfer submit lfn:/grid/cms/mc --to gsiftp://se.example.org/data/cms
    """
    from agents.user_interface import transfers

    console.run_async(transfers.submit_command(lfns, to, source, priority, wait=wait, as_json=as_json))


@app.command()
def status(
    transfer: Annotated[str | None, typer.Argument(metavar="[ID]", help="One transfer with its files.")] = None,
    wait: Wait = False,
    operator: AsOperator = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show your transfers, or the files of one.

    \b
    Examples:
      grid transfer status
      grid transfer status GxpxdqBlRmi-e6mFxdPvVw --wait
    """
    from agents.user_interface import transfers

    console.run_async(transfers.status_command(transfer, wait=wait, operator=operator, state=state, as_json=as_json))


@app.command()
def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Transfers.")],
    operator: AsOperator = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """End transfers: files that are not copied yet are not, and what is half there is removed.

    \b
    Example:
      grid transfer cancel GxpxdqBlRmi-e6mFxdPvVw
    """
    from agents.user_interface import transfers

    console.run_async(transfers.cancel_command(ids, operator=operator, state=state, as_json=as_json))


@app.command()
def report(
    since: Annotated[str, typer.Option("--since", help="How far back.", callback=console.duration_option)] = "24h",
    operator: AsOperator = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show what your transfers came to: by link, state and reason.

    \b
    Example:
      grid transfer report --since 7d
    """
    from agents.user_interface import transfers

    since_s = console.parse_duration(since)
    console.run_async(transfers.report_command(since_s, operator=operator, state=state, as_json=as_json))


@app.command()
def channels(operator: AsOperator = False, state: State = None, as_json: Json = False) -> None:
    """Show the links between storage elements: what waits and runs, how fast, and why so many at once.

    \b
    Example:
      grid transfer channels
    """
    from agents.user_interface import transfers

    console.run_async(transfers.channels_command(operator=operator, state=state, as_json=as_json))
