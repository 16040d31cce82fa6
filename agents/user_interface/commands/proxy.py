"""`grid proxy`: the user's RFC 3820 proxy."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from agents.user_interface import console
from agents.user_interface.console import Json
from agents.user_interface.exits import Ended, ExitCode, UsageProblem

app = typer.Typer(
    help="Make, show and destroy the proxy that acts for you.", no_args_is_help=True, rich_markup_mode=None
)


class KeyType(enum.StrEnum):
    """Kinds of proxy keys."""

    ec_p256 = "ec-p256"
    rsa_2048 = "rsa-2048"


@app.command()
def init(
    valid: Annotated[
        str, typer.Option(help="How long: 12:00 is hours:minutes; 12h, 90m.", callback=console.duration_option)
    ] = "12:00",
    key_type: Annotated[KeyType, typer.Option(help="Kind of the proxy's key.")] = KeyType.ec_p256,
    limited: Annotated[bool, typer.Option("--limited", help="May move data, may not start jobs.")] = False,
    path_length: Annotated[
        int | None, typer.Option(help="How many proxies may follow this one; else no limit.", min=0, max=100)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write it; else $X509_USER_PROXY or /tmp/x509up_u<uid>.")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(help="Certificate (PEM or .p12); else $X509_USER_CERT or ~/.globus.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Its key; else $X509_USER_KEY or userkey.pem beside the certificate.")
    ] = None,
    pwstdin: Annotated[bool, typer.Option("--pwstdin", help="Read the key's pass phrase from standard input.")] = False,
    voms: Annotated[
        list[str] | None,
        typer.Option(metavar="VO[:FQAN]", help="With your groups of this VO, and the group or role named, first."),
    ] = None,
    vomslife: Annotated[
        str | None, typer.Option(help="Life of the VO's attributes; else as --valid.", callback=console.duration_option)
    ] = None,
    vomses: Annotated[
        Path | None, typer.Option(help="Ask the VOMS servers of this file by HTTPS, also those of this grid.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="With --voms: no other host takes the attributes; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a proxy from your certificate.

    \b
    Examples:
      grid proxy init
      grid proxy init --valid 24:00 --key-type rsa-2048
      grid proxy init --limited --out /tmp/limited.pem
      grid proxy init --voms cms
      grid proxy init --voms cms:/cms/Role=production
      grid proxy init --voms cms --target ce.example.org --target se.example.org
    """
    from datetime import timedelta

    from agents.user_interface import proxy
    from security.proxies import create_proxy
    from security.voms import proxy_extension

    if target and not voms:
        raise UsageProblem("--target is about the attributes of a VO; name it with --voms")
    now = proxy.now_utc()
    lifetime = timedelta(seconds=console.parse_duration(valid))
    path = proxy.place(out, os.environ)
    user = proxy.open_certificate(os.environ, cert, key, pwstdin=pwstdin)
    extensions = []
    if voms:
        from agents.user_interface import attributes

        requests = attributes.parse_requests(voms)
        attributes_lifetime = lifetime if vomslife is None else timedelta(seconds=console.parse_duration(vomslife))
        encoded, warnings = console.run_async(
            attributes.fetch(user, requests, attributes_lifetime, now, os.environ, vomses, target or ())
        )
        for warning in warnings:
            console.warn(warning)
        extensions.append(proxy_extension(encoded))
    made = create_proxy(
        user,
        lifetime=lifetime,
        now=now,
        key_type=key_type.value,
        limited=limited,
        path_length=path_length,
        extensions=extensions,
    )
    made.save(path)
    facts = proxy.summary(made, path, now)
    if voms:
        facts["voms"] = attributes.show(made, now, os.environ)
    if as_json:
        console.print_json(facts)
        return
    asked = console.parse_duration(valid)
    print(f"Your identity: {facts['identity']}")
    print(f"Your proxy {path} is valid until {facts['not_after']}")
    for entry in facts.get("voms", ()):
        print(f"Your groups and roles of {entry['vo']} until {entry['not_after']}: {' '.join(entry['fqans'])}")
    if facts["seconds_left"] < asked - 60:
        console.warn("the proxy is shorter than asked for: your certificate ends first")


@app.command()
def info(
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Proxy file; else yours.")] = None,
    exists: Annotated[
        bool, typer.Option("--exists", help="Print nothing; exit 0 if there is a valid proxy (see --valid), else 1.")
    ] = False,
    valid: Annotated[
        str | None, typer.Option(help="With --exists: for at least this long.", callback=console.duration_option)
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also the groups and roles that it carries, and whether they verify.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show your proxy. Exit 1 if it has expired or, with --all, attributes do not verify; 3 if there is none.

    \b
    Examples:
      grid proxy info
      grid proxy info --all
      grid proxy info --exists --valid 1:00 || grid proxy init
    """
    from agents.user_interface import proxy
    from security.errors import SecurityError

    needed = console.parse_duration(valid) if valid is not None else 1
    try:
        found, path = proxy.load(file, os.environ)
    except SecurityError:
        if exists:
            raise Ended(ExitCode.FAILED) from None
        raise
    facts = proxy.summary(found, path, proxy.now_utc())
    if exists:
        raise Ended(ExitCode.OK if facts["seconds_left"] >= needed else ExitCode.FAILED)
    carried: list[dict[str, Any]] = []
    shown_attributes: list[dict[str, object]] = []
    if everything:
        from agents.user_interface import attributes

        facts["voms"] = carried = attributes.show(found, proxy.now_utc(), os.environ)
        shown_attributes = attributes.lines(carried)
    if as_json:
        console.print_json(facts)
    else:
        length = facts["path_length"]
        shown = {
            "subject": facts["subject"],
            "issuer": facts["issuer"],
            "identity": facts["identity"],
            "type": facts["type"],
            "path length": "no limit" if length is None else length,
            "key": facts["key"],
            "path": facts["path"],
            "not after": facts["not_after"],
            "time left": console.hours_text(facts["seconds_left"]) if facts["valid"] else "expired",
        }
        console.print_facts(shown)
        for entry in shown_attributes:
            print()
            console.print_facts(entry)
    if not facts["valid"] or not all(entry["verified"] for entry in carried):
        raise Ended(ExitCode.FAILED)


@app.command()
def destroy(
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Proxy file; else yours.")] = None,
) -> None:
    """Overwrite and remove your proxy.

    \b
    Example:
      grid proxy destroy
    """
    from agents.user_interface import proxy
    from security.credentials import find_proxy_path

    path = file or find_proxy_path(os.environ, os.getuid())
    proxy.destroy(path)
    print(f"destroyed {path}")
