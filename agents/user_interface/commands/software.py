"""`grid votag` and `grid swdir`: the software of a VO at the sites."""

from __future__ import annotations

from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.console import Json

app = typer.Typer(help="Software tags of your VO at a site.", no_args_is_help=True, rich_markup_mode=None)

Where = Annotated[str, typer.Argument(metavar="SITE", help="A site, or the name of one of its gatekeepers.")]
Tags = Annotated[list[str], typer.Argument(metavar="TAG...", help="VO-<vo>-<software>-<version>.")]


@app.command("ls")
def ls(where: Where, as_json: Json = False) -> None:
    """List the tags of your VO at a site.

    \b
    Example:
      grid votag ls CERN
    """
    from agents.user_interface import software

    console.run_async(software.change(where, [], [], as_json=as_json))


@app.command("add")
def add(where: Where, tag: Tags, as_json: Json = False) -> None:
    """Publish that software is installed at a site. For the VO's software managers (Role=lcgadmin).

    \b
    Example:
      grid votag add CERN VO-cms-CMSSW_1_2_3
    """
    from agents.user_interface import software

    console.run_async(software.change(where, tag, [], as_json=as_json))


@app.command("rm")
def rm(where: Where, tag: Tags, as_json: Json = False) -> None:
    """Publish a tag no more. For the VO's software managers (Role=lcgadmin).

    \b
    Example:
      grid votag rm CERN VO-cms-CMSSW_1_2_3
    """
    from agents.user_interface import software

    console.run_async(software.change(where, [], tag, as_json=as_json))


def swdir(where: Where, as_json: Json = False) -> None:
    """Show where the software of your VO is on the worker nodes of a site.

    \b
    Example:
      grid swdir CERN
    """
    from agents.user_interface import software

    console.run_async(software.area(where, as_json=as_json))
