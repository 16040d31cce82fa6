"""`grid info`: what the information system knows, by LDAP."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.console import Json

app = typer.Typer(help="Search the information system (GLUE 1.3 by LDAP).", no_args_is_help=True, rich_markup_mode=None)


class Scope(enum.StrEnum):
    """LDAP search scopes."""

    base = "base"
    one = "one"
    sub = "sub"


@app.command()
def sites(as_json: Json = False) -> None:
    """Show the sites: slots, jobs, space, and whether their information is fresh.

    \b
    Example:
      grid info sites
    """
    from agents.user_interface import information

    console.run_async(information.sites_command(as_json=as_json))


@app.command()
def ces(
    vo: Annotated[str | None, typer.Option(help="Only those that this VO may use.")] = None,
    as_json: Json = False,
) -> None:
    """Show the computing elements.

    \b
    Example:
      grid info ces --vo cms
    """
    from agents.user_interface import information

    console.run_async(information.ces_command(vo, as_json=as_json))


@app.command()
def ses(
    vo: Annotated[str | None, typer.Option(help="Only those that this VO may use.")] = None,
    as_json: Json = False,
) -> None:
    """Show the storage elements.

    \b
    Example:
      grid info ses
    """
    from agents.user_interface import information

    console.run_async(information.ses_command(vo, as_json=as_json))


@app.command()
def query(
    filter: Annotated[str, typer.Argument(help="LDAP filter (RFC 4515).")] = "(objectClass=*)",
    attributes: Annotated[list[str] | None, typer.Argument(help="Attributes to show; else all.")] = None,
    base: Annotated[str, typer.Option(help="Where to search.")] = "o=grid",
    scope: Annotated[Scope, typer.Option(help="How deep.")] = Scope.sub,
    server: Annotated[
        str | None, typer.Option(help="host:port; else the top server.", envvar="GRIDFABRIC_TOP_LDAP")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search with any filter and print LDIF.

    \b
    Examples:
      grid info query '(objectClass=GlueCE)' GlueCEUniqueID GlueCEStateFreeCPUs
      grid info query --base 'mds-vo-name=RAL,mds-vo-name=local,o=grid'
    """
    from agents.user_interface import information

    console.run_async(
        information.query_command(
            filter, attributes or [], base=base, scope=scope.value, server=server, as_json=as_json
        )
    )
