"""`grid info`: what the information system knows, by LDAP."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.console import Json
from agents.user_interface.exits import UsageProblem

app = typer.Typer(help="Search the information system (GLUE by LDAP).", no_args_is_help=True, rich_markup_mode=None)


class GlueSchema(enum.StrEnum):
    """Renderings of the tree."""

    glue13 = "glue13"
    glue2 = "glue2"


class Wanted(enum.StrEnum):
    """Tables of lcg-infosites."""

    ce = "ce"
    se = "se"
    closeSE = "closeSE"
    all = "all"


Server = Annotated[str | None, typer.Option(help="host:port; else the top server.", envvar="GRIDFABRIC_TOP_LDAP")]


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
    filter: Annotated[str, typer.Argument(help="LDAP filter (RFC 4515), or a SELECT.")] = "(objectClass=*)",
    attributes: Annotated[list[str] | None, typer.Argument(help="Attributes to show; else all.")] = None,
    base: Annotated[str, typer.Option(help="Where to search.")] = "o=grid",
    scope: Annotated[Scope, typer.Option(help="How deep.")] = Scope.sub,
    server: Server = None,
    follow: Annotated[bool, typer.Option("--follow", help="With a SELECT: print what comes, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Search with any filter and print LDIF; or ask the history with a SELECT, for which a proxy is needed.

    \b
    Examples:
      grid info query "select Site, At, GridFabricSiteState from GridFabricSiteHistory order by Id desc limit 10"
      grid info query --follow "select At, GlueCEUniqueID, GlueCEStateFreeJobSlots from GlueCEHistory"
      grid info query '(objectClass=GlueCE)' GlueCEUniqueID GlueCEStateFreeCPUs
      grid info query --base 'mds-vo-name=RAL,mds-vo-name=local,o=grid'
    """
    from agents.user_interface import information, information_history

    if information_history.is_query(filter):
        console.run_async(information_history.query_command(filter, follow=follow, as_json=as_json))
        return
    if follow:
        raise UsageProblem("--follow is for a SELECT; what a filter finds is printed once")
    console.run_async(
        information.query_command(
            filter, attributes or [], base=base, scope=scope.value, server=server, as_json=as_json
        )
    )


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The file to write; replaced if it is there.")],
    schema: Annotated[GlueSchema, typer.Option(help="GLUE 1.3 (o=grid) or GLUE 2.0 (o=glue).")] = GlueSchema.glue13,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Write the whole tree as LDIF, ready for slapadd with the GLUE schema.

    \b
    Example:
      grid info export --schema glue2 --out tree.ldif
    """
    from agents.user_interface import information, information_export

    address = information.server_address(server)
    console.run_async(information_export.export_command(schema.value, out, address, as_json=as_json))


@app.command()
def validate(server: Server = None, as_json: Json = False) -> None:
    """Check the GLUE 2.0 tree by the rules of EGI's glue-validator. Exits with 1 for errors and warnings.

    \b
    Example:
      grid info validate
    """
    from datetime import UTC, datetime

    from agents.user_interface import information, information_export

    address = information.server_address(server)
    console.run_async(information_export.validate_command(address, datetime.now(UTC), as_json=as_json))


def infosites(
    what: Annotated[Wanted, typer.Argument(help="Computing elements, storage elements, who is close to whom, or all.")],
    vo: Annotated[str, typer.Option(help="The VO.")],
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Print the tables of lcg-infosites: what a VO may use.

    \b
    Example:
      grid infosites --vo cms ce
    """
    from agents.user_interface import information
    from agents.user_interface import infosites as tables

    address = information.server_address(server)
    console.run_async(tables.infosites_command(vo, what.value, address, as_json=as_json))


def gstat(
    html: Annotated[Path | None, typer.Option(help="Write a page with the map to this file.")] = None,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="Write a map to this file: .svg, .kml or .geojson.")
    ] = None,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Add up the sites by region, check what they publish, ask each of them, and draw a map.

    \b
    Examples:
      grid gstat
      grid gstat --html gstat.html --map sites.kml
    """
    from agents.user_interface import information
    from agents.user_interface.gstat import run

    console.run_async(run.command(information.server_address(server), html, map_file, as_json=as_json))
