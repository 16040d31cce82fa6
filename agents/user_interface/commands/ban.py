"""`grid ban`: keep somebody out of the grid, or of one site."""

from __future__ import annotations

from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.commands.fabric import State
from agents.user_interface.console import Json

app = typer.Typer(help="Keep somebody out of the grid.", no_args_is_help=True, rich_markup_mode=None)


@app.command("add")
def add(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="A DN; 'SERIAL DN' of a certificate and its issuer; or KIND:VALUE with a kind of pattern, authority, "
            "vo, fqan, network.",
        ),
    ],
    reason: Annotated[str, typer.Option(help="Why; the banned are told.")] = "",
    duration: Annotated[
        str | None,
        typer.Option(
            "--for", help="How long, e.g. 90m or 7d; else until it is lifted.", callback=console.duration_option
        ),
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="Only at this site; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show who and what would be hit; ban nobody.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Ban somebody: open sessions and running jobs end at once, everywhere.

    \b
    Examples:
      grid ban add '/O=EDG/OU=Users/CN=Ada' --reason 'laptop stolen' --for 7d
      grid ban add 'pattern:/O=EDG/OU=Users/CN=test*' --dry-run
      grid ban add vo:cms --site RAL
      grid ban add network:192.0.2.0/24
    """
    from agents.user_interface import bans

    console.run_async(bans.add(what, reason, duration, site or [], state, dry_run=dry_run, as_json=as_json))


@app.command("ls")
def ls(state: State = None, as_json: Json = False) -> None:
    """List the bans in force.

    \b
    Example:
      grid ban ls --json
    """
    from agents.user_interface import bans

    console.run_async(bans.show(state, as_json=as_json))


@app.command("lift")
def lift(
    ban_id: Annotated[str, typer.Argument(metavar="ID", help="As grid ban ls shows it.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """End a ban.

    \b
    Example:
      grid ban lift 3f2a9c0d11e2
    """
    from agents.user_interface import bans

    console.run_async(bans.lift(ban_id, state, as_json=as_json))
