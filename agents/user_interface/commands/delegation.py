"""`grid delegation`: the proxies that services hold, and taking them back."""

from __future__ import annotations

from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.commands.fabric import State
from agents.user_interface.console import Json

app = typer.Typer(help="Proxies that services hold.", no_args_is_help=True, rich_markup_mode=None)


@app.command("ls")
def ls(
    dn: Annotated[str, typer.Option(help="An operator: of this person; * for everybody. Else your own.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """List delegated proxies: whose, at which service, since, until, for which jobs.

    \b
    Examples:
      grid delegation ls
      grid delegation ls --dn '*' --json
    """
    from agents.user_interface import delegations

    console.run_async(delegations.show(dn, state, as_json=as_json))


@app.command("recall")
def recall(
    dn: Annotated[str, typer.Option(help="An operator: of this person. Else your own.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Take back everything delegated: erased everywhere, refused at once, jobs that depend on it stopped.

    Your own proxy stays good: submit again with it when you want to. Exit 4 if a service could not be asked; what it
    holds is refused all the same.

    \b
    Examples:
      grid delegation recall
      grid delegation recall --dn '/O=EDG/OU=Users/CN=Ada'
    """
    from agents.user_interface import delegations

    console.run_async(delegations.recall(dn, state, as_json=as_json))
