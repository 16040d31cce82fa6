"""`grid storage`: the disks of a storage element, for operators."""

from __future__ import annotations

from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.commands.fabric import State
from agents.user_interface.console import Json

app = typer.Typer(help="The disks of storage elements.", no_args_is_help=True, rich_markup_mode=None)

pool = typer.Typer(help="Add disks, empty them, take them out.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(pool, name="pool")

Se = Annotated[str, typer.Argument(metavar="SE", help="Storage element: its name or its site.")]
Now = Annotated[bool, typer.Option("--now", help="Begin a round now, if none is under way.")]
Path = Annotated[str, typer.Argument(metavar="PATH", help="The pool's directory on the element's host.")]


@pool.command("ls")
def pool_ls(se: Se, state: State = None, as_json: Json = False) -> None:
    """Show the pools of a storage element: state, files, space, and what keeps a drain from going on.

    \b
    Example:
      grid storage pool ls CERN
    """
    from agents.user_interface import storage

    console.run_async(storage.list_pools(se, state, as_json=as_json))


@pool.command("add")
def pool_add(se: Se, path: Path, state: State = None, as_json: Json = False) -> None:
    """Take an empty directory into use, best on a disk of its own; or end a drain, and write to the pool again.

    \b
    Example:
      grid storage pool add CERN /data3/pool
    """
    from agents.user_interface import storage

    console.run_async(storage.change_pool("add", se, path, state, as_json=as_json))


@pool.command("drain")
def pool_drain(se: Se, path: Path, state: State = None, as_json: Json = False) -> None:
    """Write nothing new to a pool and move its files to the others, while everybody reads on.

    \b
    Example:
      grid storage pool drain CERN /data1/pool
    """
    from agents.user_interface import storage

    console.run_async(storage.change_pool("drain", se, path, state, as_json=as_json))


@pool.command("rm")
def pool_rm(se: Se, path: Path, state: State = None, as_json: Json = False) -> None:
    """Take a drained pool out. Its empty directory stays.

    \b
    Example:
      grid storage pool rm CERN /data1/pool
    """
    from agents.user_interface import storage

    console.run_async(storage.change_pool("rm", se, path, state, as_json=as_json))


@app.command()
def scrub(se: Se, now: Now = False, state: State = None, as_json: Json = False) -> None:
    """Show how far the scrubber is, and which files are damaged or lost. Exit 1 if there are any.

    \b
    Examples:
      grid storage scrub CERN
      grid storage scrub CERN --now
    """
    from agents.user_interface import storage

    console.run_async(storage.scrub(se, state, now=now, as_json=as_json))


@app.command()
def reconcile(se: Se, now: Now = False, state: State = None, as_json: Json = False) -> None:
    """Show which files only the storage element or only the catalogue has. Exit 1 if there are any.

    \b
    Examples:
      grid storage reconcile CERN
      grid storage reconcile CERN --now
    """
    from agents.user_interface import storage

    console.run_async(storage.reconcile(se, state, now=now, as_json=as_json))
