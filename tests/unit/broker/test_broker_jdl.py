"""JDL in, job descriptions or errors with a place out."""

import os
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.broker.client import read_sandbox
from agents.broker.jdl import JdlError, conjuncts, local_input_sandbox, normalise
from agents.broker.jdl_syntax import MAX_DEPTH, parse_expression, tokenise
from agents.broker.model import JobType, OutputData
from agents.broker.store import decode_description, encode_description
from fabric.errors import InvalidRequest

TRUE = 'Executable = "/bin/true";'


def only(text):
    (description,) = normalise(text).jobs()
    return description


def refused(text):
    with pytest.raises(JdlError) as caught:
        normalise(text)
    return caught.value


def test_everything_a_job_can_say():
    job = only(
        """
        // a comment
        # another
        [
          Executable = "run.sh";  /* a third
          over two lines */
          Arguments = "-n 3 'two words' \\"quoted\\"";
          StdInput = "in"; StdOutput = "out"; StdError = "err";
          InputSandbox = {"/home/a/run.sh", "file:///tmp/in"};
          Prologue = "./run.sh"; PrologueArguments = "a 'b c'"; Epilogue = "/bin/true"; EpilogueArguments = {"d e"};
          DataAccessProtocol = {"https", "gsiftp"};
          OutputSandbox = {"out", "err"};
          Environment = {"A=1", "B=x=y"};
          Requirements = other.GlueCEPolicyMaxWallClockTime > 60 && RegExp("cern", other.GlueCEUniqueID);
          Rank = -other.GlueCEStateEstimatedResponseTime;
          InputData = {"lfn:/grid/cms/a", "LF:b"};
          OutputData = {[OutputFile = "o"; LogicalFileName = "lfn:/grid/cms/o"; StorageElement = "se"],
                        [OutputFile = "p"]};
          RetryCount = 2; ShallowRetryCount = 5; VirtualOrganisation = "cms";
          MaxWallTime = 90; MaxCpuTime = "90 s"; MaxMemory = "1.5 GB"; MaxDisk = 100; JobName = "n";
          MyOwn = {1, 2};
        ];
        """
    )
    assert job.executable == "run.sh"
    assert job.arguments == ("-n", "3", "two words", "quoted")
    assert (job.std_input, job.std_output, job.std_error) == ("in", "out", "err")
    assert job.input_sandbox == ("/home/a/run.sh", "file:///tmp/in")
    assert (job.prologue, job.prologue_arguments) == ("run.sh", ("a", "b c"))
    assert (job.epilogue, job.epilogue_arguments) == ("/bin/true", ("d e",))
    assert job.data_access_protocols == ("https", "gsiftp")
    assert job.environment == (("A", "1"), ("B", "x=y"))
    assert job.input_data == ("lfn:/grid/cms/a", "lfn:b")
    assert job.output_data == (OutputData("o", "lfn:/grid/cms/o", "se"), OutputData("p"))
    assert (job.retry_count, job.shallow_retry_count, job.vo, job.name) == (2, 5, "cms", "n")
    assert (job.limits.wall_s, job.limits.cpu_s) == (5400, 90)
    assert (job.limits.memory_bytes, job.limits.disk_bytes) == (1536 * 1024**2, 100 * 1024**2)
    assert job.extra == (("MyOwn", "{ 1, 2 }"),)
    assert decode_description(encode_description(job)) == job


@pytest.mark.parametrize("text", [TRUE, f"[{TRUE}]", f"[{TRUE}];", 'Executable = "/bin/true"', "[" + TRUE + ";;]"])
def test_brackets_and_semicolons_are_free(text):
    assert only(text).executable == "/bin/true"


def test_names_have_no_case():
    assert only('EXECUTABLE = "/bin/true"; retrycount = 7').retry_count == 7


@pytest.mark.parametrize(
    ("text", "reason", "line", "column", "words"),
    [
        ("", "JDL_SYNTAX", 1, 1, "Executable"),
        ("[" + TRUE, "JDL_SYNTAX", 1, 27, "add ]"),
        (TRUE + "\n Rank = ;", "JDL_SYNTAX", 2, 9, "a value is expected"),
        (TRUE + "\n Rank = 1 +* 2;", "JDL_SYNTAX", 2, 12, "'*'"),
        (TRUE + "\n Rank = (1;", "JDL_SYNTAX", 2, 11, "')' is expected to close '(' of line 2, column 9"),
        ('Executable = "/bin/true"\nRank = 1;', "JDL_SYNTAX", 2, 1, "';' is expected"),
        ('Executable = "/bin/true;\nRank = 1;', "JDL_SYNTAX", 1, 14, "not closed"),
        (TRUE + "/* x", "JDL_SYNTAX", 1, 26, "*/"),
        (TRUE + "Rank 1;", "JDL_SYNTAX", 1, 31, "'=' is expected after the name Rank"),
        (TRUE + "Rank = 1a;", "JDL_SYNTAX", 1, 33, "number"),
        (TRUE + "Rank = “a”;", "JDL_SYNTAX", 1, 33, "typographic"),
        (TRUE + "] x", "JDL_SYNTAX", 1, 26, "attribute name"),
        (TRUE + "rank = 1; Rank = 2;", "JDL_SYNTAX", 1, 36, "twice"),
        (TRUE + 'OutputSandbox = {"a",};', "JDL_SYNTAX", 1, 46, "comma"),
        (TRUE + 'RetryCount = "2";', "JDL_TYPE", 1, 39, "RetryCount must be an integer, is a string"),
        (TRUE + "RetryCount = 2.0;", "JDL_TYPE", 1, 39, "is a real number"),
        (TRUE + "RetryCount = true;", "JDL_TYPE", 1, 39, "is a boolean"),
        (TRUE + "RetryCount = other.X;", "JDL_TYPE", 1, 39, "undefined"),
        ("Executable = 1;", "JDL_TYPE", 1, 14, "Executable must be a string, is an integer"),
        (TRUE + 'OutputSandbox = {"a",\n 3};', "JDL_TYPE", 2, 2, "this one is an integer"),
        (TRUE + 'Requirements = "x";', "JDL_TYPE", 1, 41, "true or false"),
        (TRUE + "Requirements = 3;", "JDL_TYPE", 1, 41, "is an integer"),
        (TRUE + "Rank = {1};", "JDL_TYPE", 1, 33, "is a list"),
        (TRUE + 'Rank = "a";', "JDL_TYPE", 1, 33, "is a string"),
        (TRUE + 'JobType = "MPICH";', "JDL_VALUE", 1, 36, "needs CPUNumber"),
        (TRUE + "PerusalFileEnable = true;", "JDL_VALUE", 1, 46, "nothing to look at"),
        (TRUE + 'PerusalFileEnable = true; PerusalFiles = "/etc/x";', "JDL_PATH_ESCAPE", 1, 67, "/etc/x"),
        (TRUE + 'PerusalFilesDestURI = "gsiftp://se/x";', "JDL_VALUE", 1, 48, "not at a storage element"),
        (TRUE + "PerusalTimeInterval = 5;", "JDL_VALUE", 1, 48, "10"),
        (TRUE + "CPUNumber = 2; HostNumber = 3;", "JDL_VALUE", 1, 54, "more hosts than the 2 slots"),
        (TRUE + "CPUNumber = 2; NodeNumber = 3;", "JDL_VALUE", 1, 54, "mean the same"),
        (TRUE + "CPUNumber = 0;", "JDL_VALUE", 1, 38, "1"),
        (TRUE + 'JobType = "Other";', "JDL_VALUE", 1, 36, "Normal"),
        (TRUE + "SMPGranularity = 4;", "JDL_VALUE", 1, 43, "on 1 hosts, than the 1 of CPUNumber"),
        (TRUE + "CPUNumber = 4; HostNumber = 2; SMPGranularity = 3;", "JDL_VALUE", 1, 74, "more slots, on 2 hosts"),
        (TRUE + "WholeNodes = true;", "JDL_UNSUPPORTED", 1, 39, "SMPGranularity"),
        (TRUE + 'OutputSandboxDestURI = {"gsiftp://h/x"};', "JDL_UNSUPPORTED", 1, 49, "OutputData"),
        (TRUE + 'Type = "DAG";', "JDL_VALUE", 1, 1, "Nodes is missing"),
        (TRUE + 'Type = "Set";', "JDL_VALUE", 1, 33, "Collection"),
        ("Rank = 1;", "JDL_VALUE", 1, 1, "Executable is missing"),
        ('Executable = "a.sh";', "JDL_VALUE", 1, 14, "InputSandbox"),
        ('Executable = "d/a.sh";', "JDL_PATH_ESCAPE", 1, 14, "absolute"),
        (TRUE + 'Prologue = "p.sh";', "JDL_VALUE", 1, 37, "InputSandbox"),
        (TRUE + 'Epilogue = "";', "JDL_VALUE", 1, 37, "Epilogue is empty"),
        (TRUE + 'EpilogueArguments = "x";', "JDL_VALUE", 1, 46, "no Epilogue"),
        (TRUE + 'Prologue = "/a"; PrologueArguments = "\'x";', "JDL_VALUE", 1, 63, "close the quote"),
        (TRUE + 'DataAccessProtocol = {"https", "a b"};', "JDL_VALUE", 1, 47, "no protocol"),
        (TRUE + 'Arguments = "a \'b";', "JDL_VALUE", 1, 38, "quote"),
        (TRUE + 'Environment = "A";', "JDL_VALUE", 1, 40, "NAME=value"),
        (TRUE + 'OutputSandbox = "../../etc/passwd";', "JDL_PATH_ESCAPE", 1, 42, "leave the job's directory"),
        (TRUE + 'StdOutput = "/etc/passwd";', "JDL_PATH_ESCAPE", 1, 38, "plain file name"),
        (TRUE + 'StdError = "..";', "JDL_PATH_ESCAPE", 1, 37, "plain file name"),
        (TRUE + 'InputSandbox = "..";', "JDL_PATH_ESCAPE", 1, 41, "plain file name"),
        (TRUE + 'OutputData = {[OutputFile = "a/b"]};', "JDL_PATH_ESCAPE", 1, 54, "plain file name"),
        (TRUE + 'InputSandbox = {"a/x", "b/x"};', "JDL_VALUE", 1, 41, "both be called 'x'"),
        (TRUE + 'InputSandbox = "gsiftp://h/x";', "JDL_VALUE", 1, 41, "gsiftp"),
        (TRUE + 'InputSandbox = "*.txt";', "JDL_VALUE", 1, 41, "patterns"),
        (TRUE + 'InputData = "/grid/a";', "JDL_VALUE", 1, 38, "lfn:"),
        (TRUE + "OutputData = {1};", "JDL_TYPE", 1, 40, "record"),
        (TRUE + 'StdOutput = "' + "x" * 256 + '";', "JDL_TOO_LARGE", 1, 38, "255"),
        (TRUE + "Parameters = 0;", "JDL_VALUE", 1, 39, "no job at all"),
        (TRUE + "Parameters = 10001;", "JDL_TOO_LARGE", 1, 39, "10001 jobs"),
        (TRUE + "Parameters = {1, 1};", "JDL_VALUE", 1, 39, "twice"),
        (TRUE + "Parameters = 5; ParameterStep = 0;", "JDL_VALUE", 1, 58, "never ends"),
        (TRUE + 'Parameters = {"../x"}; StdOutput = "_PARAM_";', "JDL_PATH_ESCAPE", 1, 61, "leave"),
        ('Type = "Collection"; Nodes = {[Rank = 1]};', "JDL_VALUE", 1, 31, "Executable is missing"),
        ('Type = "Collection"; Nodes = 1;', "JDL_TYPE", 1, 30, "records"),
        (TRUE + "Rank = " + "(" * 100 + "1" + ")" * 100, "JDL_SYNTAX", 1, 97, "nested deeper"),
        (TRUE + "MaxWallTime = -1;", "JDL_VALUE", 1, 40, "minutes"),
        (TRUE + "RetryCount = 99999999999;", "JDL_VALUE", 1, 39, "not between 0 and 20"),
        (TRUE + "RetryCount = 99999999999999999999999;", "JDL_SYNTAX", 1, 39, "too large"),
        (TRUE + "ShallowRetryCount = 9223372036854775808;", "JDL_SYNTAX", 1, 46, "too large"),
        (TRUE + "RetryCount = 0x10;", "JDL_SYNTAX", 1, 39, "not a plain decimal number"),
        (TRUE + "Rank = 10K;", "JDL_SYNTAX", 1, 33, "not a plain decimal number"),
        (TRUE + "Requirements = Requirements;", "JDL_VALUE", 1, 41, "write a value, or other.Requirements"),
        (TRUE + "Rank = 1 - rank;", "JDL_VALUE", 1, 37, "leads back to itself"),
        (TRUE + "Rank = a;\na = 1 + self.b;\nb = .A;", "JDL_VALUE", 3, 6, "leads back to itself"),
        (TRUE + "Rank = a0;" + "".join(f"a{n} = a{n + 1};" for n in range(30)), "JDL_TOO_LARGE", 1, 173, "than 16 ref"),
        (
            TRUE + "Rank = x.a; x = [a = b+b+b+b+b+b+b+b; b = c+c+c+c+c+c+c+c; c = 1;];",
            "JDL_TOO_LARGE",
            1,
            82,
            "than 16",
        ),
    ],
)
def test_errors_have_a_place_and_a_cure(text, reason, line, column, words):
    error = refused(text)
    assert (error.reason, error.line, error.column) == (reason, line, column), error.sentence
    assert words in error.sentence
    assert f"line {line}, column {column}" in error.sentence


def test_errors_survive_pickling():
    error = refused(TRUE + 'RetryCount = "2";')
    again = pickle.loads(pickle.dumps(error))
    assert (again.sentence, again.line, again.attribute, dict(again.facts)) == (
        error.sentence, error.line, "RetryCount", dict(error.facts),
    )  # fmt: skip


def test_parametric_numbers_are_as_in_glite():
    template = normalise(TRUE + 'Parameters = 10; ParameterStart = 1; ParameterStep = 3; Arguments = "_PARAM_";')
    assert (template.type, len(template), template.parameters) == (JobType.PARAMETRIC, 3, ("1", "4", "7"))
    assert [job.arguments for job in template.jobs()] == [("1",), ("4",), ("7",)]


def test_parametric_lists_and_every_string():
    template = normalise(
        """Executable = "run_PARAM_"; InputSandbox = {"run_PARAM_"}; Parameters = {alpha, "be ta", 3};
        StdOutput = "o_PARAM_"; OutputSandbox = {"o_PARAM_"}; Environment = {"P=_PARAM_"}; Arguments = "'_PARAM_' x";
        OutputData = {[OutputFile = "o_PARAM_"; LogicalFileName = "lfn:/grid/o_PARAM_"]};
        Requirements = other.X == "_PARAM_";"""
    )
    first, second, third = template.jobs()
    assert first.executable == "runalpha"
    assert second.arguments == ("be ta", "x")
    assert third.output_data == (OutputData("o3", "lfn:/grid/o3"),)
    assert second.requirements == 'other.X == "be ta"'
    assert second.environment == (("P", "be ta"),)


def test_local_input_sandbox_expands_parameters():
    text = 'Executable = "/bin/cat"; InputSandbox = {"common", "d/x_PARAM_"}; Parameters = {"a", "b"};'
    assert local_input_sandbox(text) == ["common", "d/xa", "d/xb"]


def test_collections_inherit():
    template = normalise(
        """[ Type = "Collection"; Executable = "/bin/echo"; RetryCount = 4; InputSandbox = {"shared"};
        Nodes = { [ Arguments = "1" ], [ NodeName = "two"; Arguments = "2"; RetryCount = 0;
                   InputSandbox = {root.InputSandbox, "own"} ] }; ]"""
    )
    first, second = template.jobs()
    assert (first.arguments, first.retry_count, first.input_sandbox) == (("1",), 4, ("shared",))
    assert (second.name, second.retry_count, second.input_sandbox) == ("two", 0, ("shared", "own"))


def test_conjuncts_are_those_of_the_top():
    assert conjuncts('a > 1 && (b || c) && (d && e) && f("x && y")') == ["a > 1", "b || c", "d", "e", 'f("x && y")']
    assert conjuncts("a && b || c") == ["a && b || c"]
    assert conjuncts("(a && b)") == ["a", "b"]
    assert conjuncts("a ? b && c : d") == ["a ? b && c : d"]


@given(st.text(max_size=60))
@settings(max_examples=200)
def test_no_text_does_more_than_raise(text):
    try:
        normalise(text)
    except JdlError as error:
        assert error.line >= 1
        assert error.column >= 1


names = st.sampled_from(["other.A", "other.B", "3", '"x"', "true"])
expressions = st.recursive(
    names,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["&&", "||", "==", "<", "+", "=?="]), inner).map(
            lambda parts: "(" + " ".join(parts) + ")"
        ),
        inner.map(lambda text: f"!{text}"),
        inner.map(lambda text: f"Member({text}, {{1, 2}})"),
    ),
    max_leaves=12,
)


@given(expressions)
def test_what_is_printed_parses_to_the_same_tokens(text):
    printed = parse_expression(text).text()
    assert [token.text for token in tokenise(printed)] == [token.text for token in tokenise(text)]


def test_depth_is_bounded_for_every_bracket():
    for opener, closer in (("(", ")"), ("{", "}"), ("!", ""), ("-", ""), ("[a=", "]"), ("1 ? 1 : ", ""), ("f(", ")")):
        text = TRUE + "X = " + opener * (MAX_DEPTH * 50) + "1" + closer * (MAX_DEPTH * 50)
        assert refused(text).reason == "JDL_SYNTAX"


@pytest.mark.parametrize(
    "text",
    [
        "Requirements = other.Requirements && TARGET.Rank > 1;",
        "Rank = Min({a, b}); a = b; b = 1;",
        "Rank = c.Rank; c = [Rank = 2];",
        "Rank = a0;" + "".join(f"a{n} = a{n + 1} + a{n + 1};" for n in range(6)) + "a6 = 1;",
        "a = 1;" + "".join(f"b{n} = a;" for n in range(100)),
    ],
)
def test_an_expression_may_lead_through_other_attributes_as_long_as_it_ends(text):
    only(TRUE + text)


def test_only_a_regular_file_goes_into_the_input_sandbox(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for name in ("fifo", "folder", "/dev/null"):
        with pytest.raises(InvalidRequest, match=f"{name}' *, and .*{name} is not a regular file"):
            read_sandbox(TRUE + f'InputSandbox = "{name}";', tmp_path)
    for name in ("none", "file/none"):
        with pytest.raises(InvalidRequest, match=f"there is no file .*{name}"):
            read_sandbox(TRUE + f'InputSandbox = "{name}";', tmp_path)
    assert [file.name for file in read_sandbox(TRUE + 'InputSandbox = "file";', tmp_path)] == ["file"]
