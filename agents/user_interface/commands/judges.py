"""The offline judges: `grid proxy verify`, `grid ca`, `grid mapfile`."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.console import Json

ca_app = typer.Typer(
    help="Show and judge certification authorities and their lists.", no_args_is_help=True, rich_markup_mode=None
)
mapfile_app = typer.Typer(help="Judge map files.", no_args_is_help=True, rich_markup_mode=None)

TrustDir = Annotated[
    Path | None, typer.Option("--trust-dir", help="Directory of authorities; else $X509_CERT_DIR and its places.")
]
At = Annotated[str | None, typer.Option("--at", help="Judge as of this time: 2026-01-31T12:00:00Z; else now.")]


class CrlMode(enum.StrEnum):
    """What a missing or expired revocation list means."""

    require = "require"
    warn = "warn"
    ignore = "ignore"


class Switch(enum.StrEnum):
    """On or off."""

    on = "on"
    off = "off"


def verify(
    file: Annotated[Path, typer.Argument(help="PEM chain of a proxy, a person or a host; leaf first or not.")],
    trust_dir: TrustDir = None,
    crl: Annotated[CrlMode, typer.Option(help="A missing or expired revocation list.")] = CrlMode.require,
    namespaces: Annotated[Switch, typer.Option(help="Whether authorities may sign these names.")] = Switch.on,
    at: At = None,
    allow_weak: Annotated[
        bool, typer.Option("--allow-weak", help="Let MD5, SHA-1 and RSA keys below 2048 bits pass.")
    ] = False,
    vomsdir: Annotated[Path | None, typer.Option(help="Verify VO attributes by the .lsc files there.")] = None,
    host: Annotated[str | None, typer.Option(help="Judge it as the certificate of this host.")] = None,
    as_json: Json = False,
) -> None:
    """Judge a certificate chain as services do, step by step. Exit 0 accepted, 1 refused, 2 nothing to judge.

    \b
    Examples:
      grid proxy verify /tmp/x509up_u1000
      grid proxy verify hostcert.pem --host ce.example.org --crl warn
      grid proxy verify old.pem --at 2006-05-01 --allow-weak --json
    """
    from agents.user_interface import judges

    verdict = judges.verify(
        file,
        environ=os.environ,
        trust_dir=trust_dir,
        crl=crl.value,
        namespaces=namespaces is Switch.on,
        at=at,
        allow_weak=allow_weak,
        vomsdir=vomsdir,
        host=host,
    )
    judges.show(verdict, as_json=as_json)


@ca_app.command("show")
def ca_show(
    name: Annotated[str | None, typer.Argument(help="Part of the name, or the hash; else all.")] = None,
    trust_dir: TrustDir = None,
    as_json: Json = False,
) -> None:
    """Show the installed authorities: what each may sign, its lists, what of it cannot be used.

    \b
    Examples:
      grid ca show
      grid ca show 523d2d60 --trust-dir /etc/grid-security/certificates
    """
    from agents.user_interface import judges

    found = judges.ca_show(judges.open_trust(trust_dir, os.environ), name)
    if as_json:
        console.print_json(found)
        return
    for number, facts in enumerate(found):
        if number:
            print()
        shown = {name: judges.shown(value) for name, value in facts.items() if value}
        console.print_facts(shown)


@ca_app.command("lint")
def ca_lint(
    name: Annotated[str | None, typer.Argument(help="Part of the name, or the hash; else all.")] = None,
    trust_dir: TrustDir = None,
    profile: Annotated[
        str | None, typer.Option(help="classic, slcs, mics, iota or laboratory; else as its .info says.")
    ] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Say what is wrong or unusual with authorities. Exit 1 if there are errors.

    \b
    Examples:
      grid ca lint
      grid ca lint "TestGrid CA" --profile classic
    """
    from agents.user_interface import judges

    store = judges.open_trust(trust_dir, os.environ)
    judges.show(judges.ca_lint(store, name, profile, judges.moment(at)), as_json=as_json)


@ca_app.command("verify-crl")
def ca_verify_crl(
    file: Annotated[Path, typer.Argument(help="Revocation list, PEM or DER.")],
    trust_dir: TrustDir = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="Certificate of its authority; else the installed one.")
    ] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Judge a revocation list: signature, content, times, and whether it is newer than the installed one.

    \b
    Examples:
      grid ca verify-crl new.crl
      grid ca verify-crl 523d2d60.r0 --ca 523d2d60.0 --at 2026-01-31
    """
    from agents.user_interface import judges

    store = judges.open_trust(ca.absolute().parent if ca is not None and trust_dir is None else trust_dir, os.environ)
    judges.show(judges.verify_list(file, store, ca, judges.moment(at)), as_json=as_json)


@mapfile_app.command("check")
def mapfile_check(
    file: Annotated[Path, typer.Argument(help="grid-mapfile or groupmapfile.")],
    dn: Annotated[str, typer.Option("--dn", help="Whose account: /C=XX/O=Grid/CN=Ada Lovelace.")],
    fqan: Annotated[list[str] | None, typer.Option("--fqan", help="Groups and roles of the proxy, in order.")] = None,
    as_json: Json = False,
) -> None:
    """Say which account a map gives, which line decided, and which lines are malformed. Exit 1 if none.

    \b
    Examples:
      grid mapfile check grid-mapfile --dn "/O=EDG/OU=Users/CN=Ada Lovelace"
      grid mapfile check groupmapfile --dn "/O=EDG/OU=Users/CN=Ada" --fqan /cms/Role=production
    """
    from agents.user_interface import judges

    judges.show(judges.map_check(file, dn, fqan or ()), as_json=as_json)


@mapfile_app.command("diff")
def mapfile_diff(
    old: Annotated[Path, typer.Argument(help="The map as it is.")],
    new: Annotated[Path, typer.Argument(help="The map as it will be.")],
    as_json: Json = False,
) -> None:
    """Say who gains, who loses and whose account changes. Exit 1 if somebody loses or changes.

    \b
    Example:
      grid mapfile diff grid-mapfile grid-mapfile.new
    """
    from agents.user_interface import judges

    judges.show(judges.map_diff(old, new), as_json=as_json)
