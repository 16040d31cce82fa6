"""Commands about the grid itself: start, look, stop, enrol, check, demonstrate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.console import Json

user_app = typer.Typer(help="Users of this grid.", no_args_is_help=True, rich_markup_mode=None)
demo_app = typer.Typer(rich_markup_mode=None)
host_app = typer.Typer(help="Hosts of this grid.", no_args_is_help=True, rich_markup_mode=None)

State = Annotated[
    Path | None,
    typer.Option("--state", help="State folder; else $GRIDFABRIC_STATE or your one grid.", envvar="GRIDFABRIC_STATE"),
]


def register(app: typer.Typer) -> None:
    """Put the commands on the top level."""
    app.command()(up)
    app.command()(status)
    app.command()(down)
    app.command()(env)
    app.command()(doctor)
    demo_app.callback(invoke_without_command=True)(demo)
    app.add_typer(demo_app, name="demo")
    app.command()(version)


def up(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Grid description (TOML), or the name of a preset: edg-2003.")
    ],
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when all is up; stop it with: grid down.")
    ] = False,
    site: Annotated[str | None, typer.Option(help="Start only this site.")] = None,
    state: State = None,
    invitation: Annotated[
        Path | None, typer.Option(help="With --site, elsewhere: the file that `grid host invite` wrote for this site.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a grid and show its agents turning green. Ctrl-C stops it, unless --detach.

    \b
    Examples:
      grid up edg-2003
      grid up lab.toml --detach && eval "$(grid env)"
      grid up lab.toml --site RAL --invitation RAL.json --detach
    """
    from agents.user_interface import deployment

    deployment.up_command(file, state, site=site, detach=detach, invitation=invitation, as_json=as_json)


def status(
    state: State = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Show every agent: state, host, ports, detail. Exit 1 if one is not green.

    \b
    Example:
      grid status
    """
    from agents.user_interface import deployment

    deployment.status_command(state, watch=watch, as_json=as_json)


def down(
    state: State = None,
    purge: Annotated[bool, typer.Option("--purge", help="Remove the state folder too: keys, jobs, files.")] = False,
    as_json: Json = False,
) -> None:
    """Stop the grid. Its state stays; `grid up` goes on where it was.

    \b
    Examples:
      grid down
      grid down --purge
    """
    from agents.user_interface import deployment

    deployment.down_command(state, purge=purge, as_json=as_json)


def env(
    state: State = None,
    file: Annotated[Path | None, typer.Option("--file", help="Also write the endpoints to this file (JSON).")] = None,
    voms: Annotated[
        Path | None, typer.Option("--voms", help="Also write vomses and vomsdir (.lsc files) into this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the shell variables that tell the other commands where the grid is.

    \b
    Examples:
      eval "$(grid env)"
      grid env --file endpoints.json     # for a machine with only credentials: GRIDFABRIC_ENDPOINTS=endpoints.json
      grid env --voms ./voms             # vomses and .lsc files for voms-proxy-init elsewhere
    """
    from agents.user_interface import endpoints

    endpoints.env_command(os.environ, state, file, voms, as_json=as_json)


def doctor(state: State = None, as_json: Json = False) -> None:
    """Check this machine and the running grid; say what is wrong and the cure. Exit 1 if something is.

    \b
    Example:
      grid doctor
    """
    from agents.user_interface import doctor as check

    check.doctor_command(state, as_json=as_json)


def demo(
    context: typer.Context,
    jobs: Annotated[int, typer.Option(help="Production jobs.", min=1, max=1000)] = 40,
    events: Annotated[int, typer.Option(help="Events in each job.", min=1, max=100_000)] = 30,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the grid up and say what to try next.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for plot, report and histories.")] = Path("demo-out"),
    grid: Annotated[str, typer.Option(help="Grid description or preset.")] = "edg-2003",
    as_json: Json = False,
) -> None:
    """Run a Monte Carlo production on a five-site grid, from nothing to the plot.

    \b
    Examples:
      grid demo
      grid demo --jobs 10 --events 20
      grid demo --keep
    """
    if context.invoked_subcommand is not None:
        return
    from agents.user_interface.demo import run

    run.demo_command(jobs=jobs, events=events, keep=keep, out=out, grid=grid, as_json=as_json)


@demo_app.command()
def stress(
    sites: Annotated[int, typer.Option(help="Sites that produce.", min=1, max=50)] = 4,
    files: Annotated[int, typer.Option(help="Files in all, about.", min=48, max=100_000)] = 240,
    file_kib: Annotated[int, typer.Option(help="Mean size of a file in KiB.", min=1, max=1 << 20)] = 512,
    seed: Annotated[int, typer.Option(help="Of the sizes and contents.", min=0)] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("stress-out"),
    as_json: Json = False,
) -> None:
    """Run the CMS stress test: copies that fail though there is room under the old rule, and none under ours.

    \b
    Examples:
      grid demo stress
      grid demo stress --sites 8 --files 2000 --file-kib 64
    """
    from agents.user_interface.demo import stress as scenario

    scenario.stress_command(sites=sites, files=files, file_kib=file_kib, seed=seed, out=out, as_json=as_json)


def version(as_json: Json = False) -> None:
    """Print the version."""
    from importlib import metadata

    try:
        found = metadata.version("gridfabric")
    except metadata.PackageNotFoundError:
        found = "unknown (not installed)"
    if as_json:
        console.print_json({"gridfabric": found})
    else:
        print(f"gridfabric {found}")


@user_app.command("add")
def user_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The person's common name, e.g. 'Ada Lovelace'.")],
    vo: Annotated[str | None, typer.Option(help="VO to join; else the grid's first.", envvar="GRIDFABRIC_VO")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Groups in the VO, e.g. /cms/production.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for usercert.pem and userkey.pem; else ~/.globus.")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Allow a second active certificate of the same name.")] = False,
    ca: Annotated[str, typer.Option(help="Name of the authority that signs, as grid ca ls shows it.")] = "",
    robot: Annotated[bool, typer.Option("--robot", help="An automated client: CN=Robot: NAME.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a user: a key here, a certificate from the grid's authority, membership in the VO.

    \b
    Examples:
      grid user add "Ada Lovelace"
      grid user add "Ada Lovelace" --vo cms --out ./ada
      grid user add "nightly production" --robot --ca robots --out ./robot
    """
    from agents.user_interface import users

    made = users.add_command(name, vo, group or [], out, state, renew=renew, authority=ca, robot=robot, as_json=as_json)
    console.run_async(made)


@user_app.command("revoke")
def user_revoke(
    who: Annotated[str, typer.Argument(metavar="WHO", help="A common name, a DN, or a serial number in hexadecimal.")],
    reason: Annotated[
        str, typer.Option(help="As RFC 5280 has it: keyCompromise, superseded, cessationOfOperation ...")
    ] = "unspecified",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Revoke certificates of a person, robot, host or agent: refused everywhere at once, for ever.

    \b
    Examples:
      grid user revoke "Ada Lovelace" --reason keyCompromise
      grid user revoke 3F2A9C0D11E2
    """
    from agents.user_interface import users

    console.run_async(users.revoke_command(who, reason, state, as_json=as_json))


@host_app.command("certify")
def host_certify(
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", help="DNS names and addresses of one host.")],
    service: Annotated[str, typer.Option(help="For this service only: CN=SERVICE/HOST.")] = "",
    ca: Annotated[str, typer.Option(help="Name of the authority that signs, as grid ca ls shows it.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for hostcert.pem and hostkey.pem.")] = Path(),
    renew: Annotated[bool, typer.Option("--renew", help="Allow a second active certificate of the same name.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a certificate for a host that is no agent of this grid, or for one service on it.

    \b
    Examples:
      grid host certify ce.example.org 192.0.2.7 --out ./ce
      grid host certify ce.example.org --service ldap --ca hosts
    """
    from agents.user_interface import users

    console.run_async(users.certify_command(hosts, service, ca, out, state, renew=renew, as_json=as_json))


@host_app.command("invite")
def host_invite(
    site: Annotated[str, typer.Argument(metavar="SITE", help="The site that will run elsewhere.")],
    host: Annotated[
        str | None, typer.Option(help="For this further host of SITE only; run it on the first machine of SITE.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; else SITE.json or HOST.json.")] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Write an invitation: with it another machine can run that site, or be a further host of it.

    \b
    Examples:
      grid host invite RAL               # then there: grid up grid.toml --site RAL --invitation RAL.json
      grid host invite RAL --host wn2    # then there: grid host join grid.toml --invitation wn2.json
    """
    from agents.user_interface import deployment

    deployment.invite_command(site, host, out, state, as_json=as_json)


@host_app.command("join")
def host_join(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The grid description, as everywhere.")],
    invitation: Annotated[Path, typer.Option(help="What `grid host invite SITE --host NAME` wrote.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make this machine a further host of a site that is up. `grid down` leaves it again.

    \b
    Example:
      grid host join grid.toml --invitation wn2.json
    """
    from agents.user_interface import deployment

    deployment.join_command(file, invitation, state, as_json=as_json)
