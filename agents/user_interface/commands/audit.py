"""`grid audit`: who did what where, from the audit logs of every agent."""

from __future__ import annotations

from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.commands.fabric import State
from agents.user_interface.console import Json

app = typer.Typer(invoke_without_command=True, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def search(
    context: typer.Context,
    dn: Annotated[list[str] | None, typer.Option(help="A person's, host's or agent's DN.")] = None,
    job: Annotated[list[str] | None, typer.Option(help="A job id.")] = None,
    file: Annotated[list[str] | None, typer.Option(help="An LFN or SURL; its replicas are followed.")] = None,
    host: Annotated[list[str] | None, typer.Option(help="An address that calls came from.")] = None,
    since: Annotated[
        str | None, typer.Option(help="How far back, e.g. 2h or 7d.", callback=console.duration_option)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Entries of one agent.")] = 10_000,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Who did what where, by the audit logs of all agents.

    An agent or site that does not answer is named, and the exit code is 4.

    \b
    Examples:
      grid audit --dn '/O=EDG/OU=Users/CN=Ada' --since 2h
      grid audit --job https://localhost:9000/ONxXNC0adPDKx7HZGOhoaQ --json
      grid audit --file lfn:/grid/cms/ada/data.bin
      grid audit --since 10m
    """
    from agents.user_interface import audit

    if context.invoked_subcommand is None:
        console.run_async(
            audit.search(dn or [], job or [], file or [], host or [], since, limit, state, as_json=as_json)
        )


@app.command("verify")
def verify(state: State = None, as_json: Json = False) -> None:
    """Check the audit logs of all agents: what was removed, changed or put in. Exit 1 if anything was.

    \b
    Example:
      grid audit verify --json
    """
    from agents.user_interface import audit

    console.run_async(audit.verify(state, as_json=as_json))
