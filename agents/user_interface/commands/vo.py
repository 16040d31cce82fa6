"""`grid vo`: a virtual organisation's members, groups, roles and acceptable use policy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from agents.user_interface import console
from agents.user_interface.commands.fabric import State
from agents.user_interface.console import Json

app = typer.Typer(help="Virtual organisations.", no_args_is_help=True, rich_markup_mode=None)
member_app = typer.Typer(help="Members and their life.", no_args_is_help=True, rich_markup_mode=None)
group_app = typer.Typer(help="Groups.", no_args_is_help=True, rich_markup_mode=None)
role_app = typer.Typer(help="Roles.", no_args_is_help=True, rich_markup_mode=None)
aup_app = typer.Typer(help="The acceptable use policy.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(member_app, name="member")
app.add_typer(group_app, name="group")
app.add_typer(role_app, name="role")
app.add_typer(aup_app, name="aup")

Vo = Annotated[str | None, typer.Option("--vo", help="Which VO; else $GRIDFABRIC_VO or the grid's first.")]
Subject = Annotated[str, typer.Argument(metavar="DN", help="The person's DN, e.g. '/O=EDG/OU=Users/CN=Ada'.")]
Fqan = Annotated[str, typer.Argument(metavar="FQAN", help="/cms/higgs, or /cms/higgs/Role=pilot.")]
For = Annotated[
    str | None,
    typer.Option("--for", help="How long from now, e.g. 365d; else for good.", callback=console.duration_option),
]


def _until_us(duration: str | None) -> int:
    return 0 if duration is None else int((time.time() + console.parse_duration(duration)) * 1e6)


def _change(call: Any, vo: str | None, state: Path | None, as_json: bool, *, own: bool = False) -> None:
    from agents.user_interface import organisation

    console.run_async(organisation.change(call, vo, state, as_json=as_json, own=own))


def _do(call: Any, done: str, vo: str | None, state: Path | None, as_json: bool) -> None:
    from agents.user_interface import organisation

    console.run_async(organisation.do(call, done, vo, state, as_json=as_json))


Name = Annotated[str, typer.Argument(metavar="NAME", help="The VO's name.")]
Sites = Annotated[list[str], typer.Option("--site", help="A site of the grid; may be repeated.")]


@app.command()
def ls(state: State = None, as_json: Json = False) -> None:
    """List the VOs of the grid, their servers, and the sites that let their members in.

    \b
    Example:
      grid vo ls --json
    """
    from agents.user_interface import vos

    console.run_async(vos.show(state, as_json=as_json))


@app.command()
def create(
    name: Name,
    server: Annotated[str, typer.Option(help="The VO server that speaks for it; else the grid's first.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a VO on the running grid. No site lets its members in before it accepts the VO.

    \b
    Example:
      grid vo create atlas && grid vo accept atlas --site CERN --site RAL
    """
    from agents.user_interface import vos

    console.run_async(vos.create(name, server, state, as_json=as_json))


@app.command()
def accept(name: Name, site: Sites, state: State = None, as_json: Json = False) -> None:
    """Let the members of a VO use sites: pool accounts, space and queues are there within seconds.

    \b
    Example:
      grid vo accept atlas --site CERN --site RAL
    """
    from agents.user_interface import vos

    console.run_async(vos.accept(name, site, state, as_json=as_json))


@app.command()
def refuse(name: Name, site: Sites, state: State = None, as_json: Json = False) -> None:
    """Let the members of a VO no longer use sites: their jobs there are stopped, their files stay.

    \b
    Example:
      grid vo refuse atlas --site RAL
    """
    from agents.user_interface import vos

    console.run_async(vos.refuse(name, site, state, as_json=as_json))


@app.command()
def dissolve(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; its people are told.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show who and what would be hit; end nothing.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """End a VO for ever: sessions, jobs, attributes from before, member list. Its files stay, for operators only.

    \b
    Examples:
      grid vo dissolve atlas --dry-run
      grid vo dissolve atlas --reason 'the experiment is over'
    """
    from agents.user_interface import vos

    console.run_async(vos.dissolve(name, reason, state, dry_run=dry_run, as_json=as_json))


@app.command()
def request(
    name: Annotated[str, typer.Option(help="Your name; else the one in your certificate.")] = "",
    email: Annotated[str, typer.Option(help="Your e-mail address.")] = "",
    vo: Vo = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Ask to become a member. Sign the acceptable use policy too; then a manager decides.

    \b
    Example:
      grid vo request --email ada@example.org && grid vo aup show && grid vo aup sign
    """
    _change(lambda client: client.request_membership(name, email), vo, state, as_json, own=True)


@member_app.command("ls")
def member_ls(
    only: Annotated[str, typer.Option("--only", help="requested, approved, suspended or expired.")] = "",
    vo: Vo = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """List the members, and who asked to be one.

    \b
    Examples:
      grid vo member ls
      grid vo member ls --only requested --json
    """
    from agents.user_interface import organisation

    console.run_async(organisation.list_members(vo, state, only, as_json=as_json))


@member_app.command("show")
def member_show(
    subject: Annotated[str, typer.Argument(metavar="[DN]", help="The person's DN; else you.")] = "",
    vo: Vo = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Show a membership, and why it is in no good standing. Exit 1 if it is not.

    \b
    Examples:
      grid vo member show
      grid vo member show '/O=EDG/OU=Users/CN=Ada'
    """
    from agents.user_interface import organisation

    console.run_async(organisation.show_member(subject, vo, state, as_json=as_json))


@member_app.command("add")
def member_add(
    subject: Subject,
    name: Annotated[str, typer.Option(help="The person's name; else the one in the DN.")] = "",
    email: Annotated[str, typer.Option(help="E-mail address.")] = "",
    group: Annotated[list[str] | None, typer.Option(help="A group or role; may be repeated.")] = None,
    vo: Vo = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make somebody a member without a request, with exactly these groups and roles.

    \b
    Example:
      grid vo member add '/O=EDG/OU=Users/CN=Ada' --group /cms/higgs --group /cms/Role=production
    """

    async def add(client: Any) -> Any:
        await client.add_member(subject, name, email, group or [])
        return await client.get_member(subject)

    _change(add, vo, state, as_json)


@member_app.command("approve")
def member_approve(
    subject: Subject, duration: For = None, vo: Vo = None, state: State = None, as_json: Json = False
) -> None:
    """Let in somebody who asked and has signed the acceptable use policy.

    \b
    Example:
      grid vo member approve '/O=EDG/OU=Users/CN=Ada' --for 365d
    """
    _change(lambda client: client.approve(subject, _until_us(duration)), vo, state, as_json)


@member_app.command("suspend")
def member_suspend(
    subject: Subject,
    reason: Annotated[str, typer.Option(help="Why; the person sees it.", prompt=False)],
    vo: Vo = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Take a member out for a time: no attributes, no line in any map file.

    \b
    Example:
      grid vo member suspend '/O=EDG/OU=Users/CN=Ada' --reason "key on a public web page"
    """
    _change(lambda client: client.suspend(subject, reason), vo, state, as_json)


@member_app.command("restore")
def member_restore(subject: Subject, vo: Vo = None, state: State = None, as_json: Json = False) -> None:
    """Take a suspension back.

    \b
    Example:
      grid vo member restore '/O=EDG/OU=Users/CN=Ada'
    """
    _change(lambda client: client.restore(subject), vo, state, as_json)


@member_app.command("renew")
def member_renew(
    subject: Subject, duration: For = None, vo: Vo = None, state: State = None, as_json: Json = False
) -> None:
    """Set the end of a membership anew.

    \b
    Example:
      grid vo member renew '/O=EDG/OU=Users/CN=Ada' --for 365d
    """
    _change(lambda client: client.renew(subject, _until_us(duration)), vo, state, as_json)


@member_app.command("remove")
def member_remove(subject: Subject, vo: Vo = None, state: State = None, as_json: Json = False) -> None:
    """Make somebody no member any more.

    \b
    Example:
      grid vo member remove '/O=EDG/OU=Users/CN=Ada'
    """
    _do(lambda client: client.remove_member(subject), f"{subject} is no member", vo, state, as_json)


@member_app.command("grant")
def member_grant(subject: Subject, fqan: Fqan, vo: Vo = None, state: State = None, as_json: Json = False) -> None:
    """Give a member a group or role that exists.

    \b
    Example:
      grid vo member grant '/O=EDG/OU=Users/CN=Ada' /cms/Role=production
    """
    _change(lambda client: client.grant(subject, fqan), vo, state, as_json)


@member_app.command("withdraw")
def member_withdraw(subject: Subject, fqan: Fqan, vo: Vo = None, state: State = None, as_json: Json = False) -> None:
    """Take a role, or a group with everything in and below it, from a member.

    \b
    Example:
      grid vo member withdraw '/O=EDG/OU=Users/CN=Ada' /cms/higgs
    """
    _change(lambda client: client.withdraw(subject, fqan), vo, state, as_json)


@member_app.command("attribute")
def member_attribute(
    subject: Subject,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the generic attribute.")],
    value: Annotated[str, typer.Argument(metavar="[VALUE]", help="Nothing removes it.")] = "",
    vo: Vo = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Set a generic attribute, which travels in the member's proxies.

    \b
    Example:
      grid vo member attribute '/O=EDG/OU=Users/CN=Ada' nickname ada
    """
    _change(lambda client: client.set_attribute(subject, name, value), vo, state, as_json)


@group_app.command("ls")
def group_ls(vo: Vo = None, state: State = None, as_json: Json = False) -> None:
    """List groups and roles.

    \b
    Example:
      grid vo group ls
    """
    from agents.user_interface import organisation

    console.run_async(organisation.list_groups(vo, state, as_json=as_json))


@group_app.command("add")
def group_add(group: Fqan, vo: Vo = None, state: State = None, as_json: Json = False) -> None:
    """Make a group; its parent exists.

    \b
    Example:
      grid vo group add /cms/higgs
    """
    _do(lambda client: client.add_group(group), f"group {group} exists", vo, state, as_json)


@group_app.command("rm")
def group_rm(group: Fqan, vo: Vo = None, state: State = None, as_json: Json = False) -> None:
    """Remove a group and those below it, and take them from everybody.

    \b
    Example:
      grid vo group rm /cms/higgs
    """
    _do(lambda client: client.remove_group(group), f"group {group} does not exist", vo, state, as_json)


Role = Annotated[str, typer.Argument(metavar="ROLE", help="Its name, e.g. production.")]


@role_app.command("add")
def role_add(role: Role, vo: Vo = None, state: State = None, as_json: Json = False) -> None:
    """Make a role, which can then be granted in any group.

    \b
    Example:
      grid vo role add production
    """
    _do(lambda client: client.add_role(role), f"role {role} exists", vo, state, as_json)


@role_app.command("rm")
def role_rm(role: Role, vo: Vo = None, state: State = None, as_json: Json = False) -> None:
    """Remove a role and take it from everybody.

    \b
    Example:
      grid vo role rm production
    """
    _do(lambda client: client.remove_role(role), f"role {role} does not exist", vo, state, as_json)


@aup_app.command("show")
def aup_show(vo: Vo = None, state: State = None, as_json: Json = False) -> None:
    """Print the current version.

    \b
    Example:
      grid vo aup show
    """
    from agents.user_interface import organisation

    console.run_async(organisation.show_aup(vo, state, as_json=as_json))


@aup_app.command("sign")
def aup_sign(
    version: Annotated[
        int | None, typer.Option("--version", help="The version that you read; else the current.")
    ] = None,
    vo: Vo = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Sign the acceptable use policy, with your proxy as the signature.

    \b
    Example:
      grid vo aup sign --version 2
    """
    from agents.user_interface import organisation

    console.run_async(organisation.sign_aup(version, vo, state, as_json=as_json))


@aup_app.command("publish")
def aup_publish(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The text, UTF-8.")],
    grace: Annotated[
        str | None,
        typer.Option(help="How long older signatures stay good, e.g. 14d.", callback=console.duration_option),
    ] = None,
    vo: Vo = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Publish a new version, which every member has to sign.

    \b
    Example:
      grid vo aup publish aup.txt --grace 14d
    """
    from agents.user_interface import organisation

    grace_s = 0.0 if grace is None else float(console.parse_duration(grace))
    console.run_async(organisation.publish_aup(file, grace_s, vo, state, as_json=as_json))


def mkgridmap(
    sources: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="HOST:PORT/VO[=ACCOUNT]", help="A member list by LDAP; else the grid's own."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The map file.")] = Path("grid-mapfile"),
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Hold a file that loses more than this share of its people.")
    ] = 0.2,
    least: Annotated[int, typer.Option(min=1, help="Fewer people than this are removed without asking.")] = 20,
    confirm: Annotated[str, typer.Option(metavar="DIGEST", help="Yes, those people shall lose access.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a grid-mapfile from the member lists of VO servers. A server that is down counts with its last list.

    \b
    Examples:
      grid mkgridmap --out /etc/grid-security/grid-mapfile
      grid mkgridmap --from vo1.example.org:3890/cms --from vo2.example.org:3890/atlas=.atlprd
    """
    from agents.user_interface import mapping

    console.run_async(mapping.make_command(sources or [], out, share, least, confirm, state, as_json=as_json))
