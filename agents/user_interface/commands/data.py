"""`grid data`: files by their logical names."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.commands.fabric import State
from agents.user_interface.console import Json

app = typer.Typer(help="Store, find and replicate files by logical name.", no_args_is_help=True, rich_markup_mode=None)

acl = typer.Typer(help="Access lists of the catalogue.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(acl, name="acl")
meta = typer.Typer(help="Attributes of files.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(meta, name="meta")

AsOperator = Annotated[bool, typer.Option("--operator", help="In the name of the grid's operator.")]
Lfn = Annotated[str, typer.Argument(metavar="LFN", help="lfn:/grid/<vo>/...")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Files: lfn:, guid:, or the SURL of a replica.")]


class Dark(StrEnum):
    """What becomes of dark files."""

    REPORT = "report"
    REGISTER = "register"
    REMOVE = "remove"


class Lost(StrEnum):
    """What becomes of lost replicas."""

    REPORT = "report"
    UNLIST = "unlist"
    REPLICATE = "replicate"


Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="A whole directory.")]
Se = Annotated[str | None, typer.Option("--se", help="Storage element: its name or its site.")]


@app.command()
def put(
    file: Annotated[Path, typer.Argument(help="The local file; with -r the directory.")],
    lfn: Lfn,
    se: Se = None,
    recursive: Recursive = False,
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help="Encrypt it here; its key lies in shares at key stores of several sites.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy a local file to a storage element and register it. With -r all files below a directory: many small ones at a
    time; call it again and it goes on where it was.

    \b
    Examples:
      grid data put results.root lfn:/grid/cms/user/results.root
      grid data put results.root lfn:/grid/cms/user/results.root --se RAL
      grid data put -r run42 lfn:/grid/cms/user/run42
      grid data put --encrypt patients.csv lfn:/grid/bio/user/patients.csv
    """
    from agents.user_interface import data, secure, trees

    if recursive and encrypt:
        raise typer.BadParameter("files are encrypted one at a time; give a file without -r", param_hint="--encrypt")
    if recursive:
        console.run_async(trees.put_tree_command(file, lfn, se, as_json=as_json))
    else:
        store = secure.put if encrypt else data.put
        console.run_async(data.put_command(file, lfn, se, store=store, as_json=as_json))


@app.command()
def get(
    lfn: Lfn,
    file: Annotated[Path | None, typer.Argument(help="Where to put it; else its own name here.")] = None,
    se: Se = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a local file of that name.")] = False,
    recursive: Recursive = False,
    as_json: Json = False,
) -> None:
    """Fetch a file; its checksums are verified before it gets its name. With -r all files below a directory; call it
    again and it goes on where it was.

    \b
    Examples:
      grid data get lfn:/grid/cms/user/results.root
      grid data get lfn:/grid/cms/user/results.root copy.root --se CERN
      grid data get -r lfn:/grid/cms/user/run42
    """
    from agents.user_interface import data, trees

    if recursive:
        console.run_async(trees.get_tree_command(lfn, file, se, force=force, as_json=as_json))
    else:
        console.run_async(data.get_command(lfn, file, se, force=force, as_json=as_json))


@app.command()
def ls(
    directory: Annotated[
        str, typer.Argument(metavar="LFN", help="A directory (or file) of the catalogue.")
    ] = "lfn:/grid",
    long: Annotated[bool, typer.Option("--long", "-l", help="With size, time, owner and replicas.")] = False,
    as_json: Json = False,
) -> None:
    """List a directory of the catalogue.

    \b
    Examples:
      grid data ls lfn:/grid/cms
      grid data ls -l lfn:/grid/cms/mc
    """
    from agents.user_interface import data

    console.run_async(data.list_command(directory, long=long, as_json=as_json))


@app.command()
def tree(
    directory: Annotated[str, typer.Argument(metavar="LFN", help="A directory of the catalogue.")] = "lfn:/grid",
    depth: Annotated[int, typer.Option("--depth", min=0, max=64, help="Levels of directories that are shown.")] = 1,
    as_json: Json = False,
) -> None:
    """Show how many files lie below a directory, their size and replicas, and how much is at which storage element.

    \b
    Examples:
      grid data tree                       # of each VO that you may list
      grid data tree lfn:/grid/cms/mc --depth 2
    """
    from agents.user_interface import usage

    console.run_async(usage.tree_command(directory, depth, as_json=as_json))


@app.command()
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Files by lfn: or guid:, aliases, single replicas, empty directories."),
    ],
    se: Annotated[str | None, typer.Option("--se", help="Remove only the replica there.")] = None,
    recursive: Recursive = False,
    as_json: Json = False,
) -> None:
    """Remove files: every replica, then the name with its aliases; of an alias that name alone, of a SURL that replica.
    With -r directories and all below; call it again after a failure.

    \b
    Examples:
      grid data rm lfn:/grid/cms/user/results.root
      grid data rm --se RAL lfn:/grid/cms/user/results.root
      grid data rm -r lfn:/grid/cms/user/run42
    """
    from agents.user_interface import data

    console.run_async(data.remove_command(names, se, recursive=recursive, as_json=as_json))


FileName = Annotated[str, typer.Argument(metavar="NAME", help="The file: lfn:, guid:, or the SURL of a replica.")]


Alias = Annotated[str, typer.Argument(metavar="LFN", help="Its new name beside those that it has.")]


@app.command()
def ln(name: FileName, alias: Alias, as_json: Json = False) -> None:
    """Give a file one more logical name, an alias: whatever takes a name takes it.

    \b
    Example:
      grid data ln lfn:/grid/cms/mc/run1.root lfn:/grid/cms/user/ada/best.root
    """
    from agents.user_interface import data

    console.run_async(data.link_command(name, alias, as_json=as_json))


@app.command()
def la(name: FileName, as_json: Json = False) -> None:
    """List the logical names of a file: its own, then its aliases.

    \b
    Example:
      grid data la lfn:/grid/cms/mc/run1.root
    """
    from agents.user_interface import data

    console.run_async(data.aliases_command(name, as_json=as_json))


@app.command("aa", hidden=True)
def add_alias(name: FileName, alias: Alias, as_json: Json = False) -> None:
    """As lcg-aa: `grid data ln`.

    \b
    Example:
      grid data aa guid:de42ab2c-4b25-4af2-94a5-a53d75e8f94d lfn:/grid/cms/user/ada/best.root
    """
    ln(name, alias, as_json)


Destination = Annotated[str | None, typer.Option("-d", help="Storage element: its name or its site.")]


@app.command("cr", hidden=True)
def copy_and_register(
    file: Annotated[str, typer.Argument(help="The local file, also as file:.")],
    lfn: Annotated[str, typer.Option("-l", help="Its logical name.")],
    se: Destination = None,
    as_json: Json = False,
) -> None:
    """As lcg-cr: `grid data put`.

    \b
    Example:
      grid data cr results.root -l lfn:/grid/cms/user/results.root -d CERN
    """
    from agents.user_interface import data

    path = Path("/" + file.removeprefix("file:").lstrip("/")) if file.startswith("file:/") else Path(file)
    console.run_async(data.put_command(path, lfn, se, as_json=as_json))


@app.command("rep", hidden=True)
def replicate_as_lcg(
    name: FileName, to: Annotated[str, typer.Option("-d", help="Storage element.")], as_json: Json = False
) -> None:
    """As lcg-rep: `grid data replicate`.

    \b
    Example:
      grid data rep lfn:/grid/cms/user/results.root -d RAL
    """
    from agents.user_interface import data

    console.run_async(data.replicate_command([name], to, as_json=as_json))


@app.command("del", hidden=True)
def delete(
    names: Names,
    everything: Annotated[bool, typer.Option("-a", help="All replicas, then the name.")] = False,
    se: Annotated[str | None, typer.Option("-s", help="The replica there.")] = None,
    as_json: Json = False,
) -> None:
    """As lcg-del: `grid data rm`.

    \b
    Examples:
      grid data del -a lfn:/grid/cms/user/results.root
      grid data del -s RAL lfn:/grid/cms/user/results.root
    """
    from agents.user_interface import data

    if everything == (se is not None) and not all("://" in name for name in names):
        raise typer.BadParameter("say which replicas: -a for all and the name, or -s SE, or SURLs", param_hint="-a")
    console.run_async(data.remove_command(names, se, as_json=as_json))


@app.command("lr", hidden=True)
def list_replicas(names: Names, as_json: Json = False) -> None:
    """As lcg-lr: `grid data locate`.

    \b
    Example:
      grid data lr lfn:/grid/cms/user/results.root
    """
    from agents.user_interface import data

    console.run_async(data.locate_command(names, as_json=as_json))


@app.command()
def replicate(
    names: Names,
    to: Annotated[str, typer.Option("--to", help="Storage element: its name or its site.")],
    recursive: Recursive = False,
    as_json: Json = False,
) -> None:
    """Copy files from one storage element to another: the bytes go directly, the checksums are verified. With -r all
    files below directories; what is there already is left alone.

    \b
    Examples:
      grid data replicate lfn:/grid/cms/user/results.root --to CERN
      grid data replicate -r lfn:/grid/cms/user/run42 --to CERN
    """
    from agents.user_interface import data

    console.run_async(data.replicate_command(names, to, recursive=recursive, as_json=as_json))


@app.command()
def subscribe(
    directory: Annotated[str, typer.Argument(metavar="LFN", help="A directory: all files in it and below.")],
    at: Annotated[str, typer.Option("--at", help="Storage elements by name or site, with commas; * and ! as shown.")],
    copies: Annotated[int, typer.Option("--copies", min=1, help="How many replicas are to be there.")] = 1,
    as_json: Json = False,
) -> None:
    """Have every file of a directory copied, those that are there and those that come. Prints the subscription's id.

    \b
    Examples:
      grid data subscribe lfn:/grid/cms/mc --at RAL
      grid data subscribe lfn:/grid/cms/mc --at '*,!CERN' --copies 2
    """
    from agents.user_interface import transfers

    console.run_async(transfers.subscribe_command(directory, at, copies, as_json=as_json))


@app.command()
def unsubscribe(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Subscriptions.")],
    operator: AsOperator = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """End subscriptions; copies that are there stay.

    \b
    Example:
      grid data unsubscribe GxpxdqBlRmi-e6mFxdPvVw
    """
    from agents.user_interface import transfers

    console.run_async(transfers.unsubscribe_command(ids, operator=operator, state=state, as_json=as_json))


@app.command()
def subscriptions(operator: AsOperator = False, state: State = None, as_json: Json = False) -> None:
    """Show your subscriptions, how far each is behind, and why.

    \b
    Example:
      grid data subscriptions
    """
    from agents.user_interface import transfers

    console.run_async(transfers.subscriptions_command(operator=operator, state=state, as_json=as_json))


@app.command()
def locate(
    names: Names,
    as_json: Json = False,
) -> None:
    """Show where the replicas of files are.

    \b
    Example:
      grid data locate lfn:/grid/cms/user/results.root
    """
    from agents.user_interface import data

    console.run_async(data.locate_command(names, as_json=as_json))


Name = Annotated[str, typer.Argument(metavar="NAME", help="lfn:, guid:, srm:, or the https: URL of a WebDAV client.")]


@app.command("stat")
def stat_file(name: Name, as_json: Json = False) -> None:
    """Show what is known about a file: of an LFN or GUID also the state of every replica.

    \b
    Examples:
      grid data stat lfn:/grid/cms/user/results.root
      grid data stat https://se.cern.ch:8447/cms/user/results.root
    """
    from agents.user_interface import files

    console.run_async(files.stat_command(name, as_json=as_json))


Readers = Annotated[list[str], typer.Argument(metavar="WHO...", help="A DN, or a group or role: /cms/higgs.")]


@app.command()
def grant(lfn: Lfn, who: Readers, as_json: Json = False) -> None:
    """Let others read an encrypted file of yours.

    \b
    Example:
      grid data grant lfn:/grid/bio/user/patients.csv /bio/study "/O=EDG/OU=Users/CN=Bob"
    """
    from agents.user_interface import secure

    console.run_async(secure.readers_command(lfn, who, grant=True, as_json=as_json))


@app.command()
def withdraw(lfn: Lfn, who: Readers, as_json: Json = False) -> None:
    """Give them the key of an encrypted file no more. Who has read it before has read it.

    \b
    Example:
      grid data withdraw lfn:/grid/bio/user/patients.csv "/O=EDG/OU=Users/CN=Bob"
    """
    from agents.user_interface import secure

    console.run_async(secure.readers_command(lfn, who, grant=False, as_json=as_json))


@app.command()
def stage(
    names: Names,
    se: Annotated[str | None, typer.Option("--se", help="The replica there: name or site.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until they are on disk.")] = False,
    pin: Annotated[
        str | None,
        typer.Option("--pin", help="Keep them on disk so long from then on: 2h, 7d.", callback=console.duration_option),
    ] = None,
    release: Annotated[bool, typer.Option("--release", help="I need them on disk no longer.")] = False,
    as_json: Json = False,
) -> None:
    """Bring files from tape to disk, and keep them there.

    \b
    Examples:
      grid data stage lfn:/grid/cms/raw/run1 lfn:/grid/cms/raw/run2 --wait --pin 2h
      grid data stage lfn:/grid/cms/raw/run1 --release
    """
    from agents.user_interface import staging

    console.run_async(staging.stage_command(names, se, wait=wait, pin=pin, release=release, as_json=as_json))


@app.command()
def checksum(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Local files, or lfn:, guid:, srm:, https:.")],
    as_json: Json = False,
) -> None:
    """Print adler32 and sha256: of local files computed, else as they were verified when the file was put.

    \b
    Example:
      grid data checksum results.root lfn:/grid/cms/user/results.root
    """
    from agents.user_interface import files

    console.run_async(files.checksum_command(names, as_json=as_json))


@app.command()
def cp(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A local file, or lfn:, guid:, srm:, https:.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A local file, lfn:, or srm://host:port/vo/.")],
    se: Se = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a local file of that name.")] = False,
    as_json: Json = False,
) -> None:
    """Copy between a local file and the grid, in either direction.

    \b
    Examples:
      grid data cp results.root lfn:/grid/cms/user/results.root
      grid data cp lfn:/grid/cms/user/results.root copy.root
      grid data cp results.root srm://se.cern.ch:8446/cms/    # no name in the catalogue: see grid data register
    """
    from agents.user_interface import files

    console.run_async(files.copy_command(source, target, se, force=force, as_json=as_json))


@app.command()
def register(
    name: Annotated[str, typer.Argument(metavar="SURL", help="srm:, or the https: URL of a WebDAV client.")],
    lfn: Lfn,
    as_json: Json = False,
) -> None:
    """Give a file that is on a storage element a logical name; or list it as one more replica of that name.

    \b
    Example:
      grid data register https://se.cern.ch:8447/cms/hello lfn:/grid/cms/user/hello
    """
    from agents.user_interface import files

    console.run_async(files.register_command(name, lfn, as_json=as_json))


@app.command("import")
def import_dump(
    file: Annotated[Path, typer.Argument(help="JSON lines, or CSV: lfn, guid, size, adler32, sha256, surls.")],
    as_json: Json = False,
) -> None:
    """Register the files that a dump of another catalogue names, with their replicas; call it again and it goes on
    where it was.

    \b
    Example:
      grid data import lfc-dump.csv
    """
    from agents.user_interface import imports

    console.run_async(imports.import_command(file, as_json=as_json))


@app.command()
def repair(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="lfn:, guid:, or the srm: of one replica.")
    ] = None,
    se: Annotated[str | None, typer.Option("--se", help="All damaged files of your VO there.")] = None,
    as_json: Json = False,
) -> None:
    """Give damaged or lost replicas the bytes of good ones: the storage element fetches and verifies them itself.

    \b
    Examples:
      grid data repair lfn:/grid/cms/user/results.root
      grid data repair --se CERN
    """
    from agents.user_interface import files

    console.run_async(files.repair_command(names or [], se, as_json=as_json))


@app.command()
def audit(
    se: Annotated[str, typer.Option("--se", help="Storage element: its name or its site.")],
    dark: Annotated[
        Dark, typer.Option(help="Files there that the catalogue does not know: tell, name or remove them.")
    ] = Dark.REPORT,
    lost: Annotated[
        Lost, typer.Option(help="Replicas that are not there: tell, take off the list, or make anew from another one.")
    ] = Lost.REPORT,
    grace: Annotated[
        str,
        typer.Option(help="Younger files are left alone: they may be on their way.", callback=console.duration_option),
    ] = "24h",
    every: Annotated[
        str | None, typer.Option(help="Again and again, so long after each other.", callback=console.duration_option)
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare what a storage element has with what the catalogue lists there, for your VO. Exit 1 if they differ.

    \b
    Examples:
      grid data audit --se CERN
      grid data audit --se CERN --lost replicate --dark register    # named lfn:/grid/<vo>/lost+found/...
      grid data audit --se CERN --every 6h
    """
    from agents.user_interface import reconciliation

    console.run_async(reconciliation.audit_command(se, dark, lost, grace, every, as_json=as_json))


@meta.command("set")
def set_attributes(
    name: FileName,
    values: Annotated[
        list[str], typer.Argument(metavar="NAME[:TYPE]=VALUE...", help="Types: text, int, real, time; else text.")
    ],
    as_json: Json = False,
) -> None:
    """Give a file attributes, in place of those of the same names.

    \b
    Example:
      grid data meta set lfn:/grid/cms/mc/run1.root kind=raw run:int=42 taken:time=2006-11-23T10:00:00Z
    """
    from agents.user_interface import metadata

    console.run_async(metadata.set_command(name, values, (), as_json=as_json))


@meta.command("rm")
def remove_attributes(
    name: FileName,
    attributes: Annotated[list[str], typer.Argument(metavar="ATTRIBUTE...", help="Their names.")],
    as_json: Json = False,
) -> None:
    """Take attributes of a file away.

    \b
    Example:
      grid data meta rm lfn:/grid/cms/mc/run1.root run
    """
    from agents.user_interface import metadata

    console.run_async(metadata.set_command(name, (), attributes, as_json=as_json))


@meta.command("get")
def get_attributes(name: FileName, as_json: Json = False) -> None:
    """Show the attributes of a file.

    \b
    Example:
      grid data meta get lfn:/grid/cms/mc/run1.root
    """
    from agents.user_interface import metadata

    console.run_async(metadata.get_command(name, as_json=as_json))


@meta.command("find")
def find_by_attributes(
    directory: Lfn,
    conditions: Annotated[
        list[str], typer.Argument(metavar="CONDITION...", help="NAME[:TYPE] with =, !=, <, <=, >, >= and a value.")
    ],
    as_json: Json = False,
) -> None:
    """List the files of a directory and below whose attributes meet every condition.

    \b
    Example:
      grid data meta find lfn:/grid/cms kind=raw 'run:int>=40'
    """
    from agents.user_interface import metadata

    console.run_async(metadata.find_command(directory, conditions, as_json=as_json))


@acl.command("get")
def get_acl(lfn: Lfn, operator: AsOperator = False, state: State = None, as_json: Json = False) -> None:
    """Show the access list that a file or directory goes by: its own, or that of the nearest directory above.

    \b
    Example:
      grid data acl get lfn:/grid/cms/mc
    """
    from agents.user_interface import access

    console.run_async(access.get_command(lfn, operator=operator, state=state, as_json=as_json))


@acl.command("set")
def set_acl(
    lfn: Lfn,
    grants: Annotated[
        list[str], typer.Argument(metavar="RIGHTS:WHO...", help="list, add, remove; an FQAN of the VO, or a DN.")
    ],
    operator: AsOperator = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Give a file, or a directory with all that is below it, an access list of its own in place of any before.

    For its owner, the VO's managers (VO-Admin) and operators, who keep every right.

    \b
    Examples:
      grid data acl set lfn:/grid/cms/mc list:/cms list,add,remove:/cms/Role=production
      grid data acl set lfn:/grid/cms/user/ada list:/O=EDG/OU=Users/CN=Bob
    """
    from agents.user_interface import access

    console.run_async(access.set_command(lfn, grants, operator=operator, state=state, as_json=as_json))


@acl.command("clear")
def clear_acl(lfn: Lfn, operator: AsOperator = False, state: State = None, as_json: Json = False) -> None:
    """Take the own access list of a file or directory away: it goes by that of the directory above again.

    \b
    Example:
      grid data acl clear lfn:/grid/cms/mc
    """
    from agents.user_interface import access

    console.run_async(access.set_command(lfn, [], operator=operator, state=state, as_json=as_json))
