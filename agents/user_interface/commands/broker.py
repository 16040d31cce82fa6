"""`grid broker`: what an operator does with one of several brokers."""

from __future__ import annotations

from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.commands.fabric import State
from agents.user_interface.console import Json

app = typer.Typer(help="Brokers of a grid that has several.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Makes `takeover` a command of a group though there is no other one."""


@app.command()
def takeover(
    name: Annotated[str, typer.Argument(metavar="BROKER", help="The broker that is gone.")],
    force: Annotated[bool, typer.Option("--force", help="Though it answers: it is shut out, and hands over.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Give the jobs of a broker that is gone to the one that has their copies. None is lost, and none runs twice.

    \b
    Example:
      grid broker takeover broker.CERN
    """
    from agents.user_interface import brokers

    console.run_async(brokers.take_over(name, force, state, as_json=as_json))
