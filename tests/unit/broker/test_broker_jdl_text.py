"""What `grid jdl check` prints: JDL of the same jobs, or every error at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.broker.jdl import normalise, notes, problems
from agents.broker.jdl_attributes import REFUSED, USED, WITHOUT_EFFECT
from agents.broker.jdl_text import classad_text, template_values
from agents.user_interface.application import run

TRUE = 'Executable = "/bin/true";'
FULL = """[ Executable = "run.sh"; Arguments = "-n 3 'two words' \\"q\\""; InputSandbox = {"a/run.sh", "in"};
  StdInput = "in"; StdOutput = "out"; OutputSandbox = "out"; Environment = {"A=1", "B=x=\\ty"}; FuzzyRank = true;
  InputData = "lfn:/grid/a"; OutputData = {[OutputFile = "o"; LogicalFileName = "lfn:/grid/o"], [OutputFile = "p"]};
  MaxWallTime = 1.5; MaxMemory = "2 GB"; MaxDisk = "100 B"; ExpiryTime = 4000000000; RetryCount = 0; SubmitTo = "ce";
  OutputSE = "se"; DataRequirements = {[InputData = {"guid:1"}; DataCatalogType = "DLI"]}; Requirements = other.X > 1;
  Prologue = "in"; PrologueArguments = "'a b'"; Epilogue = "/e"; DataAccessProtocol = "https";
  MyProxyServer = "px"; UserTags = [a = "b"]; VirtualOrganisation = "cms"; Own = {1, 2}; ]"""


@pytest.mark.parametrize(
    "text",
    [
        TRUE,
        FULL,
        TRUE + 'Parameters = {alpha, "be ta", 3}; Arguments = "_PARAM_";',
        'Type = "Collection"; Executable = "/a"; Nodes = {[], [NodeName = "two"; RetryCount = 0]};',
        'Type = "DAG"; Executable = "/a"; Nodes = [a = [NodeFailure = "abort"]; b = []]; Dependencies = {{a, b}};',
    ],
)
def test_what_is_printed_describes_the_same_jobs(text):
    template = normalise(text)
    printed = classad_text(template_values(template))
    again = normalise(printed)
    assert classad_text(template_values(again)).split() == printed.replace("-other", "- other").split()
    assert (again.type, again.parameters, again.edges) == (template.type, template.parameters, template.edges)
    assert [job.arguments for job in again.jobs()] == [job.arguments for job in template.jobs()]
    assert normalise(classad_text(template_values(again))) == again


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_every_string_comes_back(text):
    template = normalise(TRUE + "Arguments = {" + json.dumps("x") + "};")
    values = {**template_values(template), "Arguments": [text]}
    assert normalise(classad_text(values)).descriptions[0].arguments == (text,)


@pytest.mark.parametrize(("slots", "kind"), [(1, "MPICH"), (4, "OpenMPI"), (4, "Normal")])
def test_a_parallel_job_stays_one(slots, kind):
    template = normalise(TRUE + f'JobType = "{kind}"; CPUNumber = {slots};')
    again = normalise(classad_text(template_values(template)))
    assert [(job.slots, job.mpi) for made in (template, again) for job in made.descriptions] == [
        (slots, kind != "Normal")
    ] * 2


def test_what_is_copied_at_intervals():
    on = 'PerusalFileEnable = true; StdOutput = "out"; StdError = "out";'
    for text, files, seconds, se in (
        (on, ("out",), 60, ""),
        (on + 'PerusalFiles = {"a", "b"}; PerusalTimeInterval = 10;', ("a", "b"), 10, ""),
        (on + 'PerusalFilesDestURI = "srm://se.cern.ch:8446/cms/x";', ("out",), 60, "se.cern.ch:8446"),
        ('StdOutput = "out"; PerusalTimeInterval = 10; PerusalFilesDestURI = "se";', (), 0, ""),
    ):
        template = normalise(TRUE + text)
        for made in (template, normalise(classad_text(template_values(template)))):
            (job,) = made.descriptions
            assert (job.perusal_files, job.perusal_s, job.perusal_se) == (files, seconds, se)


def test_all_errors_are_told_at_once():
    found = problems(
        """[ Executable = "run.sh"; RetryCount = "2";
        JobType = "MPICH"; Environment = "x";
        Rank = "best"; ]"""
    )
    assert [(error.line, error.attribute) for error in found] == [
        (1, "Executable"), (1, "RetryCount"), (2, "JobType"), (2, "Environment"), (3, "Rank"),
    ]  # fmt: skip
    assert all(error.plain_sentence for error in found)


def test_errors_of_nodes_are_told_node_by_node():
    found = problems(
        """Type = "Collection"; Nodes = {
        [ Executable = 1 ],
        [ Executable = "/a"; RetryCount = 99 ],
        [ Executable = "/a" ] };"""
    )
    assert [(error.line, error.attribute) for error in found] == [(2, "Executable"), (3, "RetryCount")]
    assert problems(TRUE) == []
    assert [error.reason for error in problems(TRUE + "Rank = ;")] == ["JDL_SYNTAX"]
    assert [error.attribute for error in problems("Rank = 1;")] == ["Executable"]


def test_a_thousand_errors_are_not_all_told():
    many = ", ".join(['[Executable = "a"]'] * 200)
    assert len(problems(f'Type = "Collection"; Nodes = {{{many}}};')) == 50


def test_what_has_no_effect_is_said():
    assert notes(TRUE + "allowzippedisb = true; Own = 1;") == [
        f"allowzippedisb has no effect: {WITHOUT_EFFECT['AllowZippedISB']}"
    ]


@pytest.mark.parametrize(("name", "rule"), REFUSED.items(), ids=list(REFUSED))
def test_what_would_change_the_job_is_refused_unless_it_asks_for_nothing(name, rule):
    sentence, harmless = rule
    (error,) = problems(TRUE + f'{name} = "x";')
    assert (error.reason, error.attribute, error.plain_sentence) == ("JDL_UNSUPPORTED", name, sentence)
    if harmless is not None:
        assert problems(TRUE + f"{name} = {json.dumps(harmless)};") == []


def test_every_attribute_has_its_row():
    text = (Path(__file__).parents[3] / "docs" / "workload.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    told = {name.strip() for row in rows for name in row.split(",")}
    assert {*USED, *WITHOUT_EFFECT, *REFUSED} - told == set()


def test_the_command(tmp_path, capsys):
    good = tmp_path / "good.jdl"
    good.write_text(TRUE + "ZippedISB = true;")
    assert run(["jdl", "check", str(good)]) == 0
    out, err = capsys.readouterr()
    assert normalise(out)
    assert "ZippedISB has no effect" in err
    assert run(["jdl", "check", str(good), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["jdl"]["RetryCount"] == 1
    bad = tmp_path / "bad.jdl"
    bad.write_text(TRUE + '\nRetryCount = "2"; StdOutput = "/etc/x";')
    assert run(["jdl", "check", str(bad), "--json"]) == 2
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert [(error["line"], error["attribute"]) for error in errors] == [(2, "RetryCount"), (2, "StdOutput")]
    bad.write_text(TRUE + 'InputSandbox = "none";')
    assert run(["jdl", "check", str(bad)]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert run(["jdl", "check", str(tmp_path / "none.jdl")]) == 3
    assert run(["jdl", "check", "/dev/zero"]) == 2
