"""Collections and DAGs: names, inheritance, files of their own, dependencies without cycles, bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.broker import jdl_graph
from agents.broker.client import read_node_files, read_sandbox
from agents.broker.jdl import JdlError, node_files, normalise
from agents.broker.jdl_graph import find_cycle
from agents.broker.model import JobType, NodeFailure
from fabric.errors import InvalidRequest

NODES = 'Executable = "/bin/true"; Nodes = [ a = []; b = []; c = [ NodeFailure = "ignore" ]; d = [] ];'


def dag(dependencies: str, nodes: str = NODES) -> str:
    return f'[ Type = "DAG"; {nodes} Dependencies = {dependencies}; ]'


def refused(text: str, files: dict[str, str] | None = None) -> JdlError:
    with pytest.raises(JdlError) as caught:
        normalise(text, files)
    return caught.value


@pytest.mark.parametrize(
    ("dependencies", "edges"),
    [
        ("{}", ()),
        ("{{a, b}}", ((0, 1),)),
        ('{{"A", b}, {{b, c}, d}}', ((0, 1), (1, 3), (2, 3))),
        ("{{a, {b, c}}, {a, b}}", ((0, 1), (0, 2))),
    ],
)
def test_dependencies_are_pairs_of_names_or_lists(dependencies, edges):
    template = normalise(dag(dependencies))
    assert (template.type, template.edges) == (JobType.DAG, edges)
    assert [item.name for item in template.descriptions] == ["a", "b", "c", "d"]
    assert [item.node_failure for item in template.descriptions][1:3] == [NodeFailure.STOP, NodeFailure.IGNORE]


@pytest.mark.parametrize(
    ("dependencies", "reason", "words"),
    [
        ("{{a, b}, {b, c}, {c, a}}", "JDL_VALUE", "wait for each other"),
        ("{{a, a}}", "JDL_VALUE", "a -> a"),
        ("{{a, x}}", "JDL_VALUE", "x is no node"),
        ("{{a, b, c}}", "JDL_TYPE", "a pair"),
        ("{a, b}", "JDL_TYPE", "a pair"),
        ('"a"', "JDL_TYPE", "list of pairs"),
        ("{{a, {b, {c}}}}", "JDL_VALUE", "is no node"),
        ("{{a + b, c}}", "JDL_VALUE", "is no node"),
    ],
)
def test_dependencies_that_cannot_be(dependencies, reason, words):
    error = refused(dag(dependencies))
    assert error.reason == reason
    assert words in error.sentence
    assert error.attribute == "Dependencies"


def test_dependencies_may_stand_among_the_nodes_as_the_first_dags_had_it():
    text = '[ Type = "dag"; Executable = "/bin/true"; nodes = [ a = []; b = []; dependencies = {{a, b}} ]; ]'
    assert normalise(text).edges == ((0, 1),)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ("Nodes = {[Executable = \"/bin/true\"]};", "a name of its own"),
        ("Executable = \"/a\"; Nodes = {[NodeName = \"a\"], [NodeName = \"A\"]};", "'a'"),
        ("Nodes = [a = 1];", "must be a record"),
        ("Nodes = [a = [Type = \"DAG\"; Nodes = {[]}]];", "one normal job"),
        ("Nodes = [a = [Description = 1]];", "must be a record"),
        ("Nodes = [a = [Executable = \"/bin/true\"; Parameters = 3]];", "one normal job"),
        ("Nodes = [a = [File = \"a.jdl\"]];", "did not come"),
        ("Nodes = [];", "no job at all"),
    ],
)  # fmt: skip
def test_nodes_that_cannot_be(nodes, words):
    assert words in refused(dag("{}", nodes)).sentence


def test_a_description_and_a_file_inherit_and_their_errors_name_the_file():
    text = dag("{{a, b}}", 'RetryCount = 4; Nodes = [a = [Description = [Executable = "/a"]]; b = [File = "b.jdl"]];')
    assert node_files(text) == ["b.jdl"]
    a, b = normalise(text, {"b.jdl": '[ Executable = "/b"; RetryCount = 0; ]'}).descriptions
    assert [(a.executable, a.retry_count), (b.executable, b.retry_count)] == [("/a", 4), ("/b", 0)]
    error = refused(text, {"b.jdl": '\nExecutable = "b";'})
    assert (error.file, error.line) == ("b.jdl", 2)
    assert "JDL b.jdl line 2, column 14: Executable" in error.sentence
    assert refused(text, {"b.jdl": "x" * 2_000_000}).reason == "JDL_TOO_LARGE"


def test_files_of_nodes_are_read_beside_the_jdl(tmp_path):
    text = dag("{}", 'Nodes = [a = [File = "a.jdl"]];')
    with pytest.raises(InvalidRequest, match=r"a node names the file 'a\.jdl'"):
        read_node_files(text, tmp_path)
    (tmp_path / "a.jdl").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="not a text in UTF-8"):
        read_node_files(text, tmp_path)
    (tmp_path / "a.jdl").write_text("x" * 2_000_000)
    with pytest.raises(InvalidRequest, match="longer"):
        read_node_files(text, tmp_path)


def test_each_node_may_have_its_own_file_of_one_name(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.sh").write_text(folder)
    text = 'Type = "Collection"; Executable = "run.sh"; Nodes = {[InputSandbox="a/run.sh"], [InputSandbox="b/run.sh"]};'
    assert [(file.name, file.sha256[:4]) for file in read_sandbox(text, tmp_path)] == [
        ("a/run.sh", "ca97"), ("b/run.sh", "3e23"),
    ]  # fmt: skip


def test_default_retries_are_for_nodes_that_have_none():
    text = 'Type = "Collection"; Executable = "/bin/true"; DefaultNodeRetryCount = 7; Nodes = {[], [RetryCount = 2]};'
    assert [item.retry_count for item in normalise(text).descriptions] == [7, 2]


def test_bounds(monkeypatch):
    many = "".join(f"n{number} = [];" for number in range(10_001))
    assert refused(dag("{}", f'Executable = "/a"; Nodes = [{many}];')).reason == "JDL_TOO_LARGE"
    monkeypatch.setattr(jdl_graph, "MAX_DEPENDENCIES", 5)
    error = refused(dag("{{{a, b}, {c, d}}, {a, b}, {c, d}}"))
    assert (error.reason, error.attribute) == ("JDL_TOO_LARGE", "Dependencies")


def test_a_chain_of_ten_thousand_needs_no_recursion():
    chain = [(number, number + 1) for number in range(9_999)]
    assert find_cycle(10_000, chain) == []
    assert sorted(find_cycle(10_000, [*chain, (9_999, 0)])) == list(range(10_000))


@given(st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=16))
def test_a_cycle_is_found_if_and_only_if_there_is_one(edges):
    cycle = find_cycle(8, edges)
    if cycle:
        assert all((a, b) in edges for a, b in zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    else:
        order: list[int] = []
        while len(order) < 8:
            free = [n for n in range(8) if n not in order and all(a in order for a, b in edges if b == n)]
            assert free
            order += free
