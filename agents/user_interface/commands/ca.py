"""`grid ca`: the authorities of a running grid. Those of a directory are judged by `commands/judges.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.commands.fabric import State
from agents.user_interface.commands.judges import ca_app as app
from agents.user_interface.console import Json

Which = Annotated[str, typer.Argument(metavar="NAME", help="Name, subject or hash, as grid ca ls shows them.")]


@app.command("ls")
def ls(state: State = None, as_json: Json = False) -> None:
    """List the authorities that the grid trusts, one line for each key.

    \b
    Example:
      grid ca ls --json
    """
    from agents.user_interface import authorities

    console.run_async(authorities.show(state, as_json=as_json))


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its common name.")],
    under: Annotated[str | None, typer.Option(help="The authority that signs it; else it is self-signed.")] = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option(help="What it may sign, e.g. '/O=EDG/OU=Users/*'; else '<organisation>/OU=Users/OU=NAME/*'."),
    ] = None,
    valid: Annotated[
        str | None,
        typer.Option(
            help="How long, e.g. 365d; else as long as the grid's first authority.", callback=console.duration_option
        ),
    ] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make an authority; every host of the running grid trusts it at once.

    \b
    Examples:
      grid ca create robots
      grid ca create people --under grid --namespace '/O=EDG/OU=Users/*'
    """
    from agents.user_interface import authorities

    lifetime_s = console.parse_duration(valid) if valid else 0
    console.run_async(authorities.create(name, under, namespace or [], lifetime_s, state, as_json=as_json))


@app.command("add")
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Its certificate, PEM or DER.")],
    signing_policy: Annotated[Path, typer.Option(help="What it may sign: its .signing_policy file.")],
    crl: Annotated[Path | None, typer.Option(help="Its revocation list, PEM or DER.")] = None,
    crl_url: Annotated[
        list[str] | None, typer.Option(help="Where every host fetches newer lists: http://...; may be repeated.")
    ] = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Trust an authority from elsewhere on every host; again, with a newer list or other addresses of it.

    \b
    Example:
      grid ca add 1f0e8352.0 --signing-policy 1f0e8352.signing_policy --crl-url http://ca.example.org/ca.crl
    """
    from agents.user_interface import authorities

    console.run_async(authorities.add(file, signing_policy, crl, crl_url or [], state, as_json=as_json))


@app.command("remove")
def remove(
    name: Which,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show who and what would be hit; change nothing.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Trust an authority no more, on any host: sessions, delegations and jobs that it carried end.

    \b
    Examples:
      grid ca remove robots --dry-run
      grid ca remove '/O=EDG/CN=robots'
    """
    from agents.user_interface import authorities

    console.run_async(authorities.remove(name, state, dry_run=dry_run, as_json=as_json))


@app.command("rollover")
def rollover(name: Which, state: State = None, as_json: Json = False) -> None:
    """Give an authority a new key. Both are trusted; the new one signs; agents renew their certificates by themselves.

    \b
    Example:
      grid ca rollover grid
    """
    from agents.user_interface import authorities

    console.run_async(authorities.roll_over(name, state, as_json=as_json))


@app.command("retire")
def retire(
    name: Which,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show who lives on the old key; change nothing.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Stop what runs on old certificates of who has new ones.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """End the old key of an authority. Refused while somebody lives on it, or jobs may.

    \b
    Examples:
      grid ca retire grid --dry-run
      grid ca retire grid
      grid ca retire grid --now
    """
    from agents.user_interface import authorities

    console.run_async(authorities.retire(name, state, dry_run=dry_run, now=now, as_json=as_json))
