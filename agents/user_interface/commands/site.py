"""`grid site`: shut and open the queues of a site."""

from __future__ import annotations

from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.commands.fabric import State
from agents.user_interface.console import Json

app = typer.Typer(help="Shut and open the queues of a site.", no_args_is_help=True, rich_markup_mode=None)

Where = Annotated[str, typer.Argument(metavar="SITE", help="A site, or the name of one of its gatekeepers.")]
Queue = Annotated[str, typer.Option(help="Only this queue; else all of them.")]
Reason = Annotated[str, typer.Option(help="Why; it is published, and told to whom is refused.")]


@app.command()
def drain(where: Where, reason: Reason, queue: Queue = "", state: State = None, as_json: Json = False) -> None:
    """Accept no new jobs at a site; those that are there are run. Published as Draining.

    \b
    Example:
      grid site drain RAL --reason 'the computing element moves'
      grid site drain RAL --queue short --reason 'only long jobs today'
    """
    from agents.user_interface import sites

    console.run_async(sites.drain(where, reason, queue, state, as_json=as_json))


@app.command()
def maintenance(
    where: Where,
    reason: Reason,
    begins: Annotated[str, typer.Option("--in", help="When it begins, from now.", callback=console.duration_option)],
    lasts: Annotated[
        str | None,
        typer.Option("--for", help="How long it lasts; else until resume.", callback=console.duration_option),
    ] = None,
    queue: Queue = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Announce a maintenance: jobs that could not end before it wait, and nothing starts until it is over.

    \b
    Example:
      grid site maintenance RAL --in 6h --for 2h --reason 'new disks'
    """
    from agents.user_interface import sites

    begins_s = console.parse_duration(begins)
    lasts_s = console.parse_duration(lasts) if lasts else None
    console.run_async(sites.maintenance(where, reason, begins_s, lasts_s, queue, state, as_json=as_json))


@app.command()
def resume(where: Where, queue: Queue = "", state: State = None, as_json: Json = False) -> None:
    """Open the queues again, and forget an announced maintenance.

    \b
    Example:
      grid site resume RAL
    """
    from agents.user_interface import sites

    console.run_async(sites.resume(where, queue, state, as_json=as_json))
