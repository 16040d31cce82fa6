"""DAGs in the broker's store: what the end of a node means to the others, and rescue."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.broker import machine as m
from agents.broker import store as rows
from agents.broker import tables
from agents.broker.board import Board
from agents.broker.jdl import normalise
from agents.broker.model import ENDED, JobState, JobType
from fabric.store import Store

ALICE = "/CN=alice"


class Dag:
    """A broker's rows and counts, and DAGs that are played by hand."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path, tables.metadata, tables.MIGRATIONS)
        self.board = Board()
        self.log: list[tables.LogLine] = []
        self.numbers = itertools.count()

    def sink(self, connection, lines) -> None:
        self.log.extend(lines)

    def write(self, function):
        changes = self.store.write_sync(function)
        self.board.apply(changes, 0.0)
        return changes

    def submit(self, template) -> list[str]:
        number = next(self.numbers)
        ids = tuple(f"https://lb/{number}-{node}" for node in range(len(template)))
        new = rows.Submission(ALICE, f"s{number}", "jdl", "cms", template, (), f"https://lb/{number}", ids, 1000)
        done = self.store.write_sync(lambda c: rows.submit(c, new, self.sink))
        self.board.apply(done.changes, 0.0)
        return list(ids)

    def parse(self, nodes: str, dependencies: str):
        return normalise(f'Type = "DAG"; Executable = "/bin/true"; Nodes = [{nodes}]; Dependencies = {dependencies};')

    def step(self, *events) -> None:
        self.write(lambda c: rows.step_ids(c, events, 2000, self.sink))

    def run(self, job_id: str, exit_code: int = 0) -> None:
        self.step(
            (job_id, m.Matched("ce", "h:1")), (job_id, m.Sending()), (job_id, m.Started(1)),
            (job_id, m.Ended(1, exit_code)),
        )  # fmt: skip

    def jobs(self, ids) -> dict[str, m.Job]:
        found = self.store.read_sync(lambda c: rows.load_jobs(c, ids))
        return {job_id: found[job_id].job for job_id in ids}

    def states(self, ids) -> str:
        return " ".join(job.state.name for job in self.jobs(ids).values())

    def counts_agree(self) -> bool:
        counts = self.store.read_sync(rows.counts)
        return (counts.waiting, counts.owners) == (self.board.waiting, self.board.owners)

    def rest(self, ids) -> rows.Rest:
        found = self.store.read_sync(lambda c: rows.rest_of(c, ALICE, ids[0].rpartition("-")[0]))
        assert found is not None
        return found


@pytest.fixture(scope="module")
def dag(tmp_path_factory) -> Iterator[Dag]:
    made = Dag(tmp_path_factory.mktemp("dag") / "broker.db")
    yield made
    made.store.close_sync()


DIAMOND = "{{a, {b, c}}, {{b, c}, d}}"


def test_a_node_waits_for_all_its_parents(dag):
    ids = dag.submit(dag.parse("a=[]; b=[]; c=[]; d=[]", DIAMOND))
    assert dag.states(ids) == "WAITING BLOCKED BLOCKED BLOCKED"
    dag.run(ids[0])
    assert dag.states(ids) == "DONE WAITING WAITING BLOCKED"
    dag.run(ids[1])
    assert dag.states(ids) == "DONE DONE WAITING BLOCKED"
    dag.run(ids[2])
    assert dag.states(ids) == "DONE DONE DONE WAITING"
    dag.run(ids[3])
    assert dag.counts_agree()
    enqueued = [line.job_id for line in dag.log if line.event.type == "ENQUEUED" and line.job_id in ids]
    assert sorted(enqueued) == sorted(ids)


def test_a_node_that_fails_stops_what_depends_on_it_and_nothing_else(dag):
    ids = dag.submit(dag.parse("a=[]; b=[]; c=[]; d=[]; e=[]", "{{a, {b, e}}, {b, c}, {c, d}}"))
    dag.run(ids[0])
    dag.run(ids[1], exit_code=3)
    assert dag.states(ids) == "DONE DONE ABORTED ABORTED WAITING"
    reasons = {job.reason for job in dag.jobs(ids[2:4]).values()}
    assert reasons == {"PARENT_FAILED"}
    (text,) = {line.event.fields["text"] for line in dag.log if line.job_id == ids[3] and line.event.type == "ABORTED"}
    assert ids[1] in text and "EXIT_3" in text
    assert dag.counts_agree()


def test_a_failure_may_be_ignored(dag):
    ids = dag.submit(dag.parse('a=[NodeFailure = "ignore"]; b=[]', "{{a, b}}"))
    dag.run(ids[0], exit_code=1)
    assert dag.states(ids) == "DONE WAITING"


def test_a_node_that_never_ran_is_not_one_whose_failure_is_ignored(dag):
    ids = dag.submit(dag.parse('a=[]; b=[NodeFailure = "ignore"]; c=[]', "{{a, b}, {b, c}}"))
    dag.run(ids[0], exit_code=1)
    assert dag.states(ids) == "DONE ABORTED ABORTED"


def test_a_failure_may_abort_the_whole_dag(dag):
    ids = dag.submit(dag.parse('a=[NodeFailure = "abort"]; b=[]; c=[]; d=[]', "{{b, d}}"))
    dag.step((ids[1], m.Matched("ce", "h:1")), (ids[1], m.Sending()), (ids[1], m.Started(1)))
    dag.run(ids[0], exit_code=1)
    assert dag.states(ids) == "DONE RUNNING ABORTED ABORTED"
    assert dag.jobs(ids)[ids[1]].cancelling
    assert dag.jobs(ids)[ids[3]].reason == "DAG_ABORTED"
    dag.step((ids[1], m.CancelledAtCe(1)))
    assert dag.states(ids) == "DONE CANCELLED ABORTED ABORTED"
    assert dag.counts_agree()


@pytest.mark.parametrize("last_first", [False, True])
def test_a_dag_that_is_cancelled_is_cancelled_as_a_whole(dag, last_first):
    ids = dag.submit(dag.parse("a=[]; b=[]; c=[]; d=[]", DIAMOND))
    dag.step(*[(job_id, m.CancelAsked()) for job_id in (reversed(ids) if last_first else ids)])
    assert dag.states(ids) == "CANCELLED CANCELLED CANCELLED CANCELLED"
    assert dag.counts_agree()


def test_an_aborted_parent_counts_as_failed(dag):
    ids = dag.submit(dag.parse("a=[]; b=[]", "{{a, b}}"))
    dag.step((ids[0], m.GivenUp("PROXY_EXPIRED", "too old")))
    assert dag.states(ids) == "ABORTED ABORTED"


def test_a_chain_of_a_thousand_falls_in_one_step(dag):
    nodes = "".join(f"n{n}=[];" for n in range(1000))
    chain = ", ".join(f"{{n{n}, n{n + 1}}}" for n in range(999))
    ids = dag.submit(dag.parse(nodes, f"{{{chain}}}"))
    dag.run(ids[0], exit_code=1)
    assert {job.state for job in dag.jobs(ids[1:]).values()} == {JobState.ABORTED}


def test_the_rest_is_what_did_not_end_well(dag):
    ids = dag.submit(dag.parse("a=[]; b=[]; c=[]; d=[]", DIAMOND))
    dag.run(ids[0])
    assert dag.rest(ids).unfinished == 3
    dag.run(ids[1], exit_code=1)
    dag.run(ids[2])
    rest = dag.rest(ids)
    assert rest.unfinished == 0
    assert [item.name for item in rest.template.descriptions] == ["b", "d"]
    assert rest.template.edges == ((0, 1),)
    again = dag.submit(rest.template)
    assert dag.states(again) == "WAITING BLOCKED"
    dag.run(again[0])
    dag.run(again[1])
    assert dag.rest(again).template.descriptions == ()
    assert dag.store.read_sync(lambda c: rows.rest_of(c, "/CN=bob", ids[0].rpartition("-")[0])) is None


def test_the_rest_of_a_parametric_job_has_its_parameters(dag):
    ids = dag.submit(normalise('Executable = "/bin/true"; Parameters = 4; Arguments = "_PARAM_";'))
    for number, job_id in enumerate(ids):
        dag.run(job_id, exit_code=number % 2)
    rest = dag.rest(ids).template
    assert (rest.type, rest.parameters, len(rest.descriptions)) == (JobType.PARAMETRIC, ("1", "3"), 1)


def test_a_store_of_the_version_before_gets_its_tables(tmp_path):
    old = Store(tmp_path / "broker.db", tables.metadata)
    for change in (
        "DROP INDEX submissions_open", "DROP INDEX submissions_uncopied",
        "ALTER TABLE submissions DROP COLUMN uncopied",
    ):  # fmt: skip
        old.write_sync(lambda c, change=change: c.exec_driver_sql(change))
    old.write_sync(lambda c: (tables.dependencies.drop(c), tables.nodes.drop(c)))
    old.close_sync()
    made = Dag(tmp_path / "broker.db")
    assert dag_of_two(made) == "WAITING BLOCKED"
    made.store.close_sync()


def dag_of_two(made: Dag) -> str:
    return made.states(made.submit(made.parse("a=[]; b=[]", "{{a, b}}")))


graphs = st.integers(2, 8).flatmap(
    lambda count: st.tuples(
        st.lists(st.sampled_from(["stop", "ignore", "abort"]), min_size=count, max_size=count),
        st.sets(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] < pair[1])),
        st.lists(st.sampled_from(["well", "exit", "abort", "cancel"]), min_size=count, max_size=count),
        st.randoms(use_true_random=False),
    )
)


@given(graphs)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_no_node_runs_before_its_parents_and_every_node_ends(dag, case):
    policies, edges, fates, chance = case
    nodes = "".join(f'n{number}=[NodeFailure="{policy}"];' for number, policy in enumerate(policies))
    pairs = ", ".join(f"{{n{parent}, n{child}}}" for parent, child in edges)
    ids = dag.submit(dag.parse(nodes, f"{{{pairs}}}"))
    ran: list[int] = []
    while any(job.state is JobState.WAITING for job in dag.jobs(ids).values()):
        jobs = list(dag.jobs(ids).values())
        number = chance.choice([n for n, job in enumerate(jobs) if job.state is JobState.WAITING])
        for parent in (parent for parent, child in edges if child == number):
            assert jobs[parent].ended_well or (jobs[parent].state in ENDED and policies[parent] == "ignore")
        ran.append(number)
        fate = fates[number]
        if fate in ("well", "exit"):
            dag.run(ids[number], exit_code=int(fate == "exit"))
        else:
            dag.step((ids[number], m.GivenUp("X", "x") if fate == "abort" else m.CancelAsked()))
    jobs = dag.jobs(ids)
    assert all(job.state in ENDED for job in jobs.values())
    assert len(set(ran)) == len(ran)
    assert dag.counts_agree()
