"""`grid job`: submit, follow and collect jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents.user_interface import console
from agents.user_interface.console import Json

app = typer.Typer(help="Submit jobs, follow them, fetch their output.", no_args_is_help=True, rich_markup_mode=None)

Jobs = Annotated[
    list[str] | None, typer.Argument(metavar="JOB...", help="Job ids; the id of a parametric job means all its jobs.")
]
IdFile = Annotated[
    Path | None, typer.Option("--input", "-i", help="Read job ids from this file, one a line.", dir_okay=False)
]
Timeout = Annotated[
    str | None, typer.Option(help="Give up after this time (exit code 5).", callback=console.duration_option)
]


@app.command()
def submit(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.jdl...", help="Job descriptions.")],
    ids: Annotated[Path | None, typer.Option("--output", "-o", help="Append the job ids to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Submit job descriptions (JDL) to the broker and print the job ids.

    \b
    Examples:
      grid job submit hello.jdl
      grid job submit -o ids.txt production.jdl && grid job wait -i ids.txt
    """
    from agents.user_interface import jobs

    console.run_async(jobs.submit_command(files, ids, as_json=as_json))


@app.command()
def status(
    job: Jobs = None,
    input: IdFile = None,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state, e.g. RUNNING.")] = None,
    ce: Annotated[str | None, typer.Option(help="Only jobs at this computing element.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only jobs submitted in the last ... (2h, 30m).", callback=console.duration_option),
    ] = None,
    limit: Annotated[int, typer.Option(help="At most so many jobs.", min=1, max=100_000)] = 1000,
    as_json: Json = False,
) -> None:
    """Show the state of jobs; without ids, of all yours.

    \b
    Examples:
      grid job status
      grid job status --state RUNNING --since 1h
      grid job status https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w --json
    """
    from agents.user_interface import jobs

    window_s = console.parse_duration(since) if since else None
    console.run_async(jobs.status_command(_ids(job, input), state, ce, window_s, limit, as_json=as_json))


@app.command()
def wait(
    job: Jobs = None,
    input: IdFile = None,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Wait until jobs have ended. Exit 0 if all succeeded, 6 if one did not, 5 after the time-out.

    \b
    Examples:
      grid job wait https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w
      grid job wait -i ids.txt --timeout 30m
    """
    from agents.user_interface import jobs

    timeout_s = console.parse_duration(timeout) if timeout else None
    console.run_async(jobs.wait_command(_needed(_ids(job, input)), timeout_s, as_json=as_json))


@app.command()
def watch(
    job: Jobs = None,
    input: IdFile = None,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Print each change of state as it comes, until the jobs have ended; without ids, of all yours under way.

    With --json each line is an object of its own.

    \b
    Examples:
      grid job watch
      grid job watch -i ids.txt --json | jq -r 'select(.state == "DONE") | .job_id'
    """
    from agents.user_interface import jobs

    timeout_s = console.parse_duration(timeout) if timeout else None
    console.run_async(jobs.watch_command(_ids(job, input), timeout_s, as_json=as_json))


@app.command()
def follow(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job id.")],
    stderr: Annotated[bool, typer.Option("--stderr", help="Standard error instead of standard output.")] = False,
    file: Annotated[str | None, typer.Option("--file", "-f", help="Another file in the job's directory.")] = None,
) -> None:
    """Print what a job writes as it writes it, from the beginning, until it has ended. Exit 6 if it did not succeed.

    Waits for a job that is queued; of one that has ended, prints what its output sandbox has.

    \b
    Examples:
      grid job follow https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w
      grid job follow --file run.log https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w | grep WARNING
    """
    from agents.user_interface import following

    console.run_async(following.follow_command(job, std_error=stderr, name=file))


@app.command()
def perusal(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job id.")],
    directory: Annotated[Path, typer.Option("--dir", "-d", help="Where to put it; a folder for the job.")] = Path("."),
    add: Annotated[
        list[str] | None, typer.Option("--set", help="Fetch nothing; copy this file of the job, too. May be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch what was copied so far of a job's files to a storage element (JDL: PerusalFileEnable).

    Works also while the site, or the whole job, is gone. `grid job follow` shows a running job's file as it grows.

    \b
    Examples:
      grid job perusal https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w --dir look
      grid job perusal https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w --set run.log
    """
    from agents.user_interface import perusal

    if add:
        console.run_async(perusal.set_command(job, add, as_json=as_json))
        return
    console.run_async(perusal.perusal_command(job, directory, as_json=as_json))


@app.command()
def stats(
    since: Annotated[
        str, typer.Option(help="Jobs submitted in the last ... (2h, 30m, 7d).", callback=console.duration_option)
    ] = "24h",
    by: Annotated[
        str, typer.Option(help="Group by these, with commas: vo, ce, owner, state; empty for one line.")
    ] = "vo,ce",
    as_json: Json = False,
) -> None:
    """Show how jobs fared: rates, waiting times, processor time, by VO and computing element.

    \b
    Examples:
      grid job stats
      grid job stats --since 7d --by owner --json
    """
    from agents.user_interface import jobs

    seconds = max(1, console.parse_duration(since))
    console.run_async(jobs.stats_command(seconds, console.words_of(by), as_json=as_json))


@app.command()
def output(
    job: Jobs = None,
    input: IdFile = None,
    directory: Annotated[Path, typer.Option("--dir", "-d", help="Where to put it; a folder for each job.")] = Path("."),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the output at the site: it can be fetched again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch the output sandbox of ended jobs, and clear them.

    \b
    Examples:
      grid job output https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w
      grid job output -i ids.txt --dir results --keep
    """
    from agents.user_interface import jobs

    console.run_async(jobs.output_command(_needed(_ids(job, input)), directory, keep=keep, as_json=as_json))


@app.command()
def cancel(job: Jobs = None, input: IdFile = None, as_json: Json = False) -> None:
    """Cancel jobs.

    \b
    Example:
      grid job cancel https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w
    """
    from agents.user_interface import jobs

    console.run_async(jobs.cancel_command(_needed(_ids(job, input)), as_json=as_json))


@app.command()
def hold(job: Jobs = None, input: IdFile = None, as_json: Json = False) -> None:
    """Let jobs that wait at a computing element wait there until they are released.

    \b
    Example:
      grid job hold https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w
    """
    from agents.user_interface import jobs

    console.run_async(jobs.hold_command(_needed(_ids(job, input)), release=False, as_json=as_json))


@app.command()
def release(job: Jobs = None, input: IdFile = None, as_json: Json = False) -> None:
    """Let held jobs start again.

    \b
    Example:
      grid job release https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w
    """
    from agents.user_interface import jobs

    console.run_async(jobs.hold_command(_needed(_ids(job, input)), release=True, as_json=as_json))


@app.command()
def resubmit(
    job: Annotated[str, typer.Argument(metavar="JOB", help="What submit printed: of a job, collection or DAG.")],
    ids: Annotated[Path | None, typer.Option("--output", "-o", help="Append the new job id to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Submit again what did not end well of a job, collection or DAG whose jobs have all ended.

    \b
    Example:
      grid job resubmit https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w
    """
    from agents.user_interface import jobs

    console.run_async(jobs.resubmit_command(job, ids, as_json=as_json))


@app.command()
def history(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job id.")],
    as_json: Json = False,
) -> None:
    """Show every recorded event of a job.

    \b
    Example:
      grid job history https://localhost:40105/Vx3k0Z2mQ1y8bN7cT5dR9w
    """
    from agents.user_interface import jobs

    console.run_async(jobs.history_command(job, as_json=as_json))


@app.command("list-match")
def list_match(
    file: Annotated[Path, typer.Argument(metavar="FILE.jdl", help="A job description.")],
    as_json: Json = False,
) -> None:
    """Show which computing elements suit a job, in order of rank, and why the others do not.

    \b
    Example:
      grid job list-match hello.jdl
    """
    from agents.user_interface import jobs

    console.run_async(jobs.list_match_command(file, as_json=as_json))


MAX_IDS_BYTES = 64 * 1024 * 1024
"""Of a file of job ids; whoever names /dev/zero gets a sentence and not a full memory."""


def _ids(given: list[str] | None, file: Path | None) -> list[str]:
    found = list(given or [])
    if file is not None:
        try:
            with file.open("rb") as stream:
                data = stream.read(MAX_IDS_BYTES + 1)
            text = data.decode("utf-8")
            if len(data) > MAX_IDS_BYTES:
                raise typer.BadParameter(f"{file} is too long: at most {MAX_IDS_BYTES} bytes of job ids at once")
        except UnicodeDecodeError:
            raise typer.BadParameter(f"{file} is not a file of job ids, one on a line") from None
        found += [line.strip() for line in text.splitlines()]
    return list(dict.fromkeys(text for text in found if text and not text.startswith("#")))


def _needed(ids: list[str]) -> list[str]:
    if not ids:
        raise typer.BadParameter("name at least one job, or a file of job ids with --input")
    return ids
