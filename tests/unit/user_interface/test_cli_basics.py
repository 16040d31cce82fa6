"""The command line as a whole: help, usage errors, exit codes, JSON, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main
from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as lb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.user_interface import console, deployment, exits, jobs, users
from agents.user_interface.application import app
from agents.user_interface.endpoints import Endpoints
from agents.user_interface.exits import ExitCode, UsageProblem
from agents.user_interface.main import run
from agents.user_interface.vos import server_of
from fabric.errors import DeadlineExceeded, InvalidRequest, NotFound, Refused, Unavailable
from fabric.settings import Endpoint
from fabric.text import counted
from security.errors import CredentialError, Reason, ValidationError

ROOT = Path(__file__).parents[3]


def commands(command: Any = None, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command with its words."""
    command = command or typer.main.get_command(app)
    below = getattr(command, "commands", None)
    if below is None:
        return [(words, command)]
    own = [(words, command)] if command.invoke_without_command and words else []
    return own + [found for name, child in below.items() for found in commands(child, (*words, name))]


ALL = commands()
PRINTS_NO_DATA = {("proxy", "destroy"), ("job", "follow")}
"""Or a job's own bytes and nothing else."""


@pytest.fixture(autouse=True)
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No grid, no credential, no variable of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("GRIDFABRIC_", "X509_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("X509_USER_PROXY", str(tmp_path / "no-proxy.pem"))
    monkeypatch.setenv("GRIDFABRIC_STATE", str(tmp_path / "no-state"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", [words for words, _ in ALL], ids=" ".join)
def test_every_command_has_help_with_an_example(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--help"]) == 0
    text = capsys.readouterr().out
    if words != ("version",):
        assert "Example" in text and f"grid {' '.join(words)}" in text.partition("Example")[2]


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_every_command_that_prints_data_can_print_json(words: tuple[str, ...], command: Any) -> None:
    options = {option for parameter in command.params for option in getattr(parameter, "opts", ())}
    assert "--json" in options or words in PRINTS_NO_DATA


def test_the_commands_are_those_promised() -> None:
    assert {" ".join(words) for words, _ in ALL} == {
        "up", "status", "down", "env", "doctor", "demo", "demo stress", "version", "gstat",
        "proxy init", "proxy info", "proxy destroy", "proxy verify",
        "ca show", "ca lint", "ca verify-crl", "mapfile check", "mapfile diff",
        "ca ls", "ca create", "ca add", "ca remove", "ca rollover", "ca retire", "user revoke", "host certify",
        "jdl check", "job resubmit", "accounting report", "accounting export", "accounting check",
        "job submit", "job status", "job wait", "job output", "job cancel", "job hold", "job release",
        "job history", "job list-match", "job watch", "job stats", "job follow", "job perusal",
        "data put", "data get", "data ls", "data rm", "data tree", "data replicate", "data locate",
        "data ln", "data la", "data import", "data meta set", "data meta get", "data meta rm", "data meta find",
        "data aa", "data cr", "data rep", "data del", "data lr",
        "data subscribe", "data unsubscribe", "data subscriptions",
        "data acl get", "data acl set", "data acl clear",
        "info sites", "info ces", "info ses", "info query", "info export", "info validate", "infosites",
        "data stat", "data stage", "data checksum", "data cp", "data register", "data repair", "data audit",
        "data grant", "data withdraw",
        "storage pool ls", "storage pool add", "storage pool drain", "storage pool rm",
        "storage scrub", "storage reconcile",
        "transfer submit", "transfer status", "transfer cancel", "transfer report", "transfer channels",
        "site drain", "site maintenance", "site resume", "votag ls", "votag add", "votag rm", "swdir",
        "user add", "host invite", "host join", "ban add", "ban ls", "ban lift",
        "audit", "audit verify", "delegation ls", "delegation recall",
        "drill list", "drill run", "drill report", "bench replay",
        "vo ls", "vo create", "vo accept", "vo refuse", "vo dissolve",
        "vo request", "vo member ls", "vo member show", "vo member add", "vo member approve", "vo member suspend",
        "vo member restore", "vo member renew", "vo member remove", "vo member grant", "vo member withdraw",
        "vo member attribute", "vo group ls", "vo group add", "vo group rm", "vo role add", "vo role rm",
        "vo aup show", "vo aup sign", "vo aup publish", "mkgridmap", "broker takeover",
    }  # fmt: skip


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [words for words, _ in ALL if f"grid {' '.join(words)}" not in text] == []
    for code in ExitCode:
        assert f"| {code.value} |" in text


@pytest.mark.parametrize(
    "line",
    [
        ["nonsense"],
        ["job", "nonsense"],
        ["job", "submit"],
        ["job", "wait"],
        ["proxy", "init", "--valid", "soon"],
        ["proxy", "init", "--path-length", "-1"],
        ["proxy", "init", "--path-length", "101"],
        ["job", "status", "no-job-id"],
        ["job", "status", "--state", "SLEEPING"],
        ["data", "ls", "not/an/lfn"],
        ["demo", "--jobs", "0"],
        ["info", "query", "--server", "nonsense"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_exit_code_2_and_one_sentence(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == ExitCode.USAGE
    errors = capsys.readouterr().err
    assert errors.startswith("grid: ") and errors.count("\n") == 1
    assert run([*line, "--json"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "USAGE"


@pytest.mark.parametrize(
    "line",
    [
        ["status"],
        ["env"],
        ["job", "status"],
        ["data", "ls"],
        ["info", "sites"],
        ["proxy", "info"],
        ["up", "no-such-description"],
        ["job", "submit", "no-such.jdl"],
        ["user", "add", "Ada"],
        ["host", "invite", "CERN"],
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_exit_code_3(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line) == ExitCode.NOT_FOUND
    assert capsys.readouterr().err.startswith("grid: ")


def test_a_service_that_does_not_answer_is_exit_code_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRIDFABRIC_TOP_LDAP", "127.0.0.1:1")
    monkeypatch.delenv("GRIDFABRIC_STATE")
    assert run(["info", "ces"]) == ExitCode.UNREACHABLE
    said = capsys.readouterr().err
    assert "no LDAP server answers at 127.0.0.1:1 (connection refused)" in said and "GRIDFABRIC_TOP_LDAP" in said


def test_what_is_no_text_or_no_file_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary").write_bytes(b"\x9b\xff\xe1")
    assert run(["job", "wait", "-i", "binary"]) == ExitCode.USAGE
    assert "not a file of job ids" in capsys.readouterr().err
    assert run(["job", "submit", "/dev/zero"]) == ExitCode.USAGE
    assert run(["job", "wait", "-i", "/dev/zero"]) == ExitCode.USAGE
    assert capsys.readouterr().err.count("too long") == 2
    assert run(["up", "lab", "--state", "/dev/null/x"]) == ExitCode.FAILED
    os.mkfifo(tmp_path / "fifo")
    assert run(["data", "put", "fifo", "lfn:/grid/cms/x"]) == ExitCode.USAGE
    assert "not a regular file" in capsys.readouterr().err
    (tmp_path / "deep.json").write_text("[" * 100_000)
    os.environ["GRIDFABRIC_ENDPOINTS"] = "deep.json"
    try:
        assert run(["info", "ces"]) == ExitCode.USAGE
    finally:
        del os.environ["GRIDFABRIC_ENDPOINTS"]
    assert "not an endpoints file" in capsys.readouterr().err
    assert run(["proxy", "init", "--out", "none/proxy", "--cert", "none"]) == ExitCode.NOT_FOUND
    assert "there is no certificate file none; " in capsys.readouterr().err


def test_bytes_that_are_no_utf8_are_not_a_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def encodes(work: Any) -> None:
        work.close()
        "\udcff".encode()

    monkeypatch.setattr(console, "run_async", encodes)
    assert run(["info", "ces"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("grid: an argument, a variable or a file name is not UTF-8")


@pytest.mark.parametrize("line", [[], ["job"]], ids=["grid", "grid job"])
def test_without_a_command_the_help_is_shown_as_it_is(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line) == ExitCode.USAGE
    text = capsys.readouterr().err
    assert text.startswith("Usage: grid") and text.count("\n") > 5


def written_state(folder: Path, port: int) -> Path:
    """A state folder whose authority is at this port."""
    folder.mkdir()
    authority = {"name": "authority.A", "host": "localhost", "rpc": port}
    content = {"vos": ["cms"], "certificates": f"{folder}/certificates", "endpoints": {"authority": [authority]}}
    (folder / "endpoints.json").write_text(json.dumps(content))
    return folder


def test_user_add_honours_the_variables_but_not_against_a_state_folder_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[tuple[Any, ...]] = []

    @asynccontextmanager
    async def met_instead(services: Any, credential: Any, certificates: Path) -> AsyncIterator[Any]:
        met.append((credential, *services.one("authority"), certificates.parent.name))
        raise NotFound("ENOUGH", "seen enough")
        yield

    monkeypatch.setattr(users, "open_grid", met_instead)
    monkeypatch.setattr(users, "administrator", lambda folder: folder.name)
    one, two = written_state(tmp_path / "one", 1), written_state(tmp_path / "two", 2)
    monkeypatch.setenv("GRIDFABRIC_STATE", str(one))
    run(["user", "add", "Ada"])
    monkeypatch.setenv("GRIDFABRIC_AUTHORITY", "elsewhere:9")
    monkeypatch.setenv("X509_CERT_DIR", "/other/certificates")
    run(["user", "add", "Ada"])
    run(["user", "add", "Ada", "--state", str(two)])
    assert met == [("one", "localhost", 1, "one"), ("one", "elsewhere", 9, "other"), ("two", "localhost", 2, "two")]


async def test_user_add_finds_out_what_cannot_work_before_there_is_a_certificate(tmp_path: Path) -> None:
    known = Endpoints({"vo": (Endpoint("vo", "vo.cms", "localhost", "CERN"),)}, vos=("cms",))
    grid: Any = SimpleNamespace(services=known)  # asked for a channel it would fail
    with pytest.raises(NotFound, match="VO 'nosuch' is known; VOs of this grid: cms"):
        await users.add(grid, "Ada", "nosuch", (), tmp_path / "ada")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        await users.add(grid, "Ada", "cms", (), tmp_path / "file" / "ada")
    assert await server_of(grid, "cms") == known.all("vo")[0]


async def test_of_several_files_one_that_is_not_there_keeps_no_other_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def submitted(grid: Any, text: str, folder: Path, file: str) -> jobs.Submitted:
        return jobs.Submitted(file, f"https://h:1/{text}", ())

    @asynccontextmanager
    async def opened(environ: Any) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(jobs, "submit", submitted)
    monkeypatch.setattr(jobs, "open_for_user", opened)
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    with pytest.raises(exits.Ended) as end:
        await jobs.submit_command([tmp_path / "one", tmp_path / "none", tmp_path / "two"], None, as_json=False)
    said = capsys.readouterr()
    assert said.out == "https://h:1/one\nhttps://h:1/two\n" and end.value.code == ExitCode.NOT_FOUND
    assert said.err == f"grid: {tmp_path}/none: no such file or directory; check the name\n"
    with pytest.raises(FileNotFoundError):
        await jobs.submit_command([tmp_path / "one"], tmp_path / "no" / "ids", as_json=False)
    assert capsys.readouterr().out == ""  # nothing was submitted whose id could be lost


def test_a_grid_gets_a_folder_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home" / "thesis.tex").touch()
    assert run(["up", "lab", "--state", str(tmp_path / "home")]) == ExitCode.USAGE
    assert "home has other things in it; give a grid a folder of its own" in capsys.readouterr().err
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    (tmp_path / "state").mkdir()
    for name in (".lock", "inventory.json"):
        (tmp_path / "state" / name).touch()
        assert deployment.state_for("lab", tmp_path / "state", {}) == tmp_path / "state"


def test_down_on_nothing_is_no_error() -> None:
    assert run(["down"]) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("X", "x"), 3),
        (Unavailable("X", "x"), 4),
        (DeadlineExceeded("X", "x"), 5),
        (TimeoutError("x"), 5),
        (Refused("X", "x"), 1),
        (CredentialError(Reason.CREDENTIAL_NOT_FOUND, "x"), 3),
        (ValidationError(Reason.TRUST_DIRECTORY_INVALID, "x"), 3),
        (CredentialError(Reason.ENVIRONMENT_INVALID, "x"), 2),
        (CredentialError(Reason.CREDENTIAL_LOCKED, "x"), 1),
        (CredentialError(Reason.CREDENTIAL_FILE_UNSAFE, "x"), 1),
        (InvalidRequest("JDL_SYNTAX", "x"), 2),
        (UsageProblem("x"), 2),
        (FileNotFoundError(2, "x"), 3),
        (IsADirectoryError(21, "x"), 2),
        (PermissionError(13, "x"), 1),
        (RuntimeError("x"), 1),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert exits.exit_code(error) == code


def test_what_is_said_of_an_error() -> None:
    said = exits.describe(Refused("NOT_MAPPED", "nobody knows you", subject="/CN=x"))
    assert said == {"reason": "NOT_MAPPED", "sentence": "nobody knows you", "facts": {"subject": "/CN=x"}}
    said = exits.describe(PermissionError(13, "Permission denied", "/x/y"))
    assert said == {
        "reason": "SYSTEM",
        "sentence": "/x/y: permission denied; see to its permissions, or name another",
        "facts": {"path": "/x/y"},
    }
    said = exits.describe(ZeroDivisionError("a\nb"))
    assert said["reason"] == "DEFECT" and "ZeroDivisionError: a b" in said["sentence"]


def test_a_defect_is_a_sentence_and_its_traceback_goes_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("agents.user_interface.endpoints.env_command", broken)
    assert run(["env"]) == 1
    errors = capsys.readouterr().err
    assert "a defect in grid itself: ZeroDivisionError: oops" in errors and "Traceback" not in errors
    monkeypatch.setenv("GRIDFABRIC_TRACEBACK", str(tmp_path / "trace"))
    assert run(["env"]) == 1
    assert "Traceback" in (tmp_path / "trace").read_text()


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agents.user_interface.endpoints.env_command", interrupted)
    assert run(["env"]) == 130
    assert "Traceback" not in capsys.readouterr().err


WORDS = st.sampled_from(
    [
        *("proxy", "job", "data", "info", "env", "status", "submit", "wait", "ls", "get", "query"),
        *("--json", "--help", "-i", "--state", "--valid", "1:00", "--limit", "-5", "--", "-", "", "\x00"),
        *("lfn:/grid/cms", "https://h:1/x", "(objectClass=*)", "(((", "../.."),
    ]
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=st.lists(WORDS | st.text(max_size=12), min_size=1, max_size=6))
def test_garbage_never_makes_a_traceback_or_a_defect(capsys: pytest.CaptureFixture[str], line: list[str]) -> None:
    if line[0] in ("up", "demo", "down", "doctor"):
        return
    code = run(line)
    output = capsys.readouterr()
    assert code in set(ExitCode), line
    assert "Traceback" not in output.err and "a defect" not in output.err, (line, output.err)


def test_closed_standard_streams_are_no_defect() -> None:
    command = [sys.executable, "-m", "agents.user_interface.main", "proxy", "info"]
    script = 'exec "$@" <&- >&-'
    done = subprocess.run(["sh", "-c", script, "sh", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == ExitCode.NOT_FOUND and done.stderr.startswith("grid: there is no proxy")
    assert (
        subprocess.run(["sh", "-c", script + " 2>&-", "sh", *command[:-2], "version"], cwd=ROOT, timeout=60).returncode
        == 0
    )


@pytest.mark.parametrize(("line", "code"), [("version", 1), ("env --json", 3)])
def test_output_that_cannot_be_written_is_one_sentence(line: str, code: int) -> None:
    command = [sys.executable, "-m", "agents.user_interface.main", *line.split()]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, cwd=ROOT, env=buffered, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == code
    assert done.stderr.startswith("grid: ") and done.stderr.count("\n") == 1


def test_a_name_that_the_terminal_cannot_show_is_shown_by_its_codes() -> None:
    program = "from agents.user_interface import main; main.complete_streams(); print('z\\u00fc', '\\udcff')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, timeout=60)
    assert done.stdout == b"z\\xfc \\udcff\n"


@pytest.mark.parametrize(
    ("line", "spared"),
    [
        ("--help", "pydantic cryptography grpc asyncio rich matplotlib numpy ray sqlalchemy"),
        ("proxy info", "pydantic grpc google.protobuf asyncio rich matplotlib numpy ray sqlalchemy"),
        ("job status", "pydantic classad2 fabric.rpc.server rich matplotlib numpy ray sqlalchemy"),
    ],
)
def test_a_command_loads_only_what_it_needs(line: str, spared: str) -> None:
    program = (
        f"import sys; from agents.user_interface.main import run; run({line.split()});"
        f"print(sorted(set({spared.split()}) & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "proto" / "gen")))}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=30, check=True
    )
    assert answer.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("text", "seconds"), [("12:00", 43200), ("0:30", 1800), ("12h", 43200), ("90m", 5400), ("30s", 30), ("2d", 172800)]
)
def test_durations(text: str, seconds: int) -> None:
    assert console.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "12", "1:60", "-1h", "0s", "h", "1:2:3", "9" * 30 + "h", "1.5h", "١h"])
def test_durations_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        console.parse_duration(text)


def test_numbers_for_people() -> None:
    assert [console.bytes_text(n) for n in (0, 1023, 1536, 5 * 1024**3)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
    assert console.hours_text(3661) == "1:01:01"
    assert console.time_us_text(1_700_000_000_123_456) == "2023-11-14T22:13:20.123Z"
    assert console.time_us_text(0) == ""


def test_words_for_numbers_of_things() -> None:
    assert [counted(n, "worker") for n in (0, 1, 2)] == ["0 workers", "1 worker", "2 workers"]
    assert [counted(2, noun) for noun in ("entry", "process")] == ["2 entries", "2 processes"]


def test_a_reason_is_not_the_state_once_more(capsys: pytest.CaptureFixture[str]) -> None:
    cancelled = lb.JobSummary(job_id="https://h:1/x", state=lb.JOB_STATE_CANCELLED, reason="CANCELLED")
    banned = lb.JobSummary(job_id="https://h:1/y", state=lb.JOB_STATE_CANCELLED, reason="BANNED")
    jobs.print_jobs([cancelled, banned], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["CANCELLED", "CANCELLED"]
    assert [line.split()[-1] for line in lines[1:]] == ["-", "BANNED"]


def test_a_table_off_the_terminal_is_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(["SITE", "JOBS"], [["CERN", 3], ["NIKHEF", None]])
    assert capsys.readouterr().out == "SITE    JOBS\nCERN    3\nNIKHEF  -\n"
