"""The command tree of `grid`, and the one place where errors become sentences and exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

import typer

from agents.user_interface import console
from agents.user_interface.commands import (
    accounting,
    audit,
    ban,
    bench,
    broker,
    ca,
    data,
    delegation,
    drill,
    fabric,
    info,
    jdl,
    job,
    judges,
    proxy,
    site,
    software,
    storage,
    transfer,
    vo,
)
from agents.user_interface.exits import Ended, ExitCode, UsageProblem, describe, exit_code

app = typer.Typer(
    name="grid",
    help="Start, use and inspect a gridfabric grid.",
    epilog="Try it: grid demo    All commands with examples and exit codes: docs/commands.md",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
fabric.register(app)
proxy.app.command("verify")(judges.verify)
app.add_typer(proxy.app, name="proxy")
app.add_typer(ca.app, name="ca")
app.add_typer(judges.mapfile_app, name="mapfile")
app.add_typer(jdl.app, name="jdl")
app.add_typer(job.app, name="job")
app.add_typer(accounting.app, name="accounting")
app.add_typer(data.app, name="data")
app.add_typer(storage.app, name="storage")
app.add_typer(transfer.app, name="transfer")
app.add_typer(info.app, name="info")
app.command()(info.infosites)
app.command()(info.gstat)
app.add_typer(vo.app, name="vo")
app.command()(vo.mkgridmap)
app.add_typer(fabric.user_app, name="user")
app.add_typer(site.app, name="site")
app.add_typer(broker.app, name="broker")
app.add_typer(software.app, name="votag")
app.command()(software.swdir)
app.add_typer(ban.app, name="ban")
app.add_typer(audit.app, name="audit")
app.add_typer(delegation.app, name="delegation")
app.add_typer(drill.app, name="drill")
app.add_typer(bench.app, name="bench")
app.add_typer(fabric.host_app, name="host")


def run(arguments: Sequence[str]) -> int:
    """Run one command line, return its exit code; every error becomes one sentence. Raises KeyboardInterrupt."""
    console.mode.as_json = "--json" in arguments
    if not sys.warnoptions:  # libraries' advice to programmers, for instance on the certificates of other authorities
        warnings.simplefilter("ignore")
    try:
        try:
            result = app(list(arguments), prog_name="grid", standalone_mode=False)
            code = int(result) if isinstance(result, int) else ExitCode.OK
        except Ended as end:
            code = end.code
        sys.stdout.flush()
        return code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:  # `grid ... | head`: the reader has what it wanted
        _give_output_up()
        return ExitCode.OK
    except Exception as error:
        return _report(error)


def _give_output_up() -> None:
    """Standard output takes nothing more: Python would try, and complain, once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _report(error: Exception) -> int:
    while isinstance(error, ExceptionGroup):  # of work done side by side: what failed first stopped the rest
        error = error.exceptions[0]
    usage = getattr(error, "format_message", None)
    if isinstance(error, UnicodeEncodeError):  # bytes of the command line arrive as lone surrogates
        error = UsageProblem("an argument, a variable or a file name is not UTF-8 text; write or rename it in UTF-8")
    if type(error).__name__ == "NoArgsIsHelpError" and usage is not None and not console.mode.as_json:
        print(usage(), file=sys.stderr)
        return ExitCode.USAGE
    if usage is not None:  # the command line parser's own errors
        facts = {"reason": "USAGE", "sentence": str(usage()).replace("\n", " "), "facts": {}}
        context = getattr(error, "ctx", None)
        if context is not None:
            facts["sentence"] = f"{facts['sentence'].rstrip('.')}; see {context.command_path} --help"
        code: int = ExitCode.USAGE
    else:
        facts, code = describe(error), exit_code(error)
    try:
        if console.mode.as_json:
            console.print_json({"error": facts})
        sys.stdout.flush()
    except OSError:
        _give_output_up()
    print(f"grid: {facts['sentence']}", file=sys.stderr)
    _keep_traceback(error)
    return code


def _keep_traceback(error: Exception) -> None:
    """For a report of a defect: only into a file, and only when asked for."""
    path = os.environ.get("GRIDFABRIC_TRACEBACK")
    if path:
        import traceback

        try:
            with open(path, "a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
        except OSError:
            print(f"grid: {path} cannot be written", file=sys.stderr)
