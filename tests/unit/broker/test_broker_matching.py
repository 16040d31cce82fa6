"""Matching, explaining, and sharing out slots."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.broker.board import Board
from agents.broker.jdl import normalise
from agents.broker.machine import Job
from agents.broker.matching import (
    MAX_SLICES,
    SLICE_US,
    UNKNOWN_RANK,
    Candidate,
    CeLoad,
    CompiledCe,
    CompiledCluster,
    Room,
    candidates,
    distribute,
    draw,
    explain,
    match_pass,
    room_of,
    used_slots,
    why_chosen,
)
from agents.broker.model import Cluster, ComputingElement, JobDescription, JobState, Limits
from agents.broker.tables import Change


def ce(name="ce1", *, free=4, running=0, waiting=0, vos=("cms",), alive=True, close=(), **attributes):
    values = {
        "GlueCEUniqueID": name, "GlueCEStateStatus": "Production" if alive else "Unknown",
        "GlueCEStateEstimatedResponseTime": 0, "GlueCEPolicyMaxWallClockTime": 60,
        "GlueHostApplicationSoftwareRunTimeEnvironment": ("VO-cms-CMSSW_1",), **attributes,
    }  # fmt: skip
    return ComputingElement(name, name, 1, name, values, vos, free, running, waiting, alive, close)


PRODUCTION = "/cms/Role=production"


def compiled(requirements="", rank="", vo="cms", **more):
    return CompiledCluster(Cluster(1, requirements, rank, vo, "/CN=a", **more))


@pytest.mark.parametrize(
    ("requirements", "matches"),
    [
        ("", True),
        ("other.GlueCEPolicyMaxWallClockTime >= 60", True),
        ("other.gluecepolicymaxwallclocktime >= 61", False),
        ('Member("VO-cms-CMSSW_1", other.GlueHostApplicationSoftwareRunTimeEnvironment)', True),
        ('RegExp("^ce[0-9]$", other.GlueCEUniqueID)', True),
        ("other.GlueNothing > 3", False),
        ("isUndefined(other.GlueNothing)", True),
        ('other.GlueCEPolicyMaxWallClockTime > "a"', False),
        ("target.GlueCEPolicyMaxWallClockTime == 60", True),
    ],
)
def test_requirements(requirements, matches):
    cluster, element = compiled(requirements), CompiledCe(ce())
    assert cluster.matches(element) is matches
    assert explain(cluster, element).matches is matches


def test_vo_and_status_come_before_requirements():
    assert not compiled("true", vo="atlas").matches(CompiledCe(ce()))
    assert not compiled("true").matches(CompiledCe(ce(alive=False)))
    told = explain(compiled(vo="atlas"), CompiledCe(ce()))
    assert (told.failing_term, told.explanation) == (
        'Member("VO:atlas", other.GlueCEAccessControlBaseRule)',
        "the CE takes VO:cms",
    )
    assert "Unknown" in explain(compiled(), CompiledCe(ce(alive=False))).explanation


@pytest.mark.parametrize(
    ("fqans", "matches"),
    [((PRODUCTION, "/cms"), True), (("/cms",), False), ((), False), (("/cms/higgs/Role=production",), False)],
)
def test_a_ce_for_a_role_takes_who_shows_it(fqans, matches):
    reserved = CompiledCe(dataclasses.replace(ce(vos=("atlas",)), fqans=(PRODUCTION,)))
    cluster = compiled(fqans=fqans)
    told = explain(cluster, reserved)
    assert cluster.matches(reserved) == told.matches == matches
    if not matches:
        assert told.failing_term == 'Member("VO:cms", other.GlueCEAccessControlBaseRule)'
        shown = ", ".join(fqans) or "no groups or roles"
        assert told.explanation == f"the CE takes VO:atlas, VOMS:{PRODUCTION}; your proxy shows {shown}"
    assert compiled(vo="atlas").matches(reserved)
    assert not compiled(vo="lhcb", fqans=("/lhcb/Role=production",)).matches(reserved)


def test_own_attributes_may_be_used():
    cluster = CompiledCluster(
        Cluster(1, "other.GlueCEPolicyMaxWallClockTime >= Wanted", "", "cms", "", (), (("Wanted", "30 * 2"),))
    )
    assert cluster.matches(CompiledCe(ce()))


@pytest.mark.parametrize(
    ("requirements", "term", "explanation"),
    [
        ("true && other.GlueCEPolicyMaxWallClockTime >= 720", "other.GlueCEPolicyMaxWallClockTime >= 720",
         "GlueCEPolicyMaxWallClockTime is 60"),
        ("other.GlueFoo == 1", "other.GlueFoo == 1", "GlueFoo is not published by the CE"),
        ('other.GlueCEUniqueID == "x" || other.GlueCEPolicyMaxWallClockTime > 99',
         'other.GlueCEUniqueID == "x" || other.GlueCEPolicyMaxWallClockTime > 99',
         'GlueCEUniqueID is "ce1"; GlueCEPolicyMaxWallClockTime is 60'),
        ("1 == 2", "1 == 2", "the term is not true"),
    ],
)  # fmt: skip
def test_the_failing_term_is_named_with_the_value(requirements, term, explanation):
    told = explain(compiled(requirements), CompiledCe(ce()))
    assert (told.matches, told.failing_term, told.explanation) == (False, term, explanation)


def test_rank():
    elements = [
        CompiledCe(ce("slow", GlueCEStateEstimatedResponseTime=100)),
        CompiledCe(ce("fast")),
        CompiledCe(ce("odd", GlueCEStateEstimatedResponseTime="?")),
    ]
    assert [item.ce for item in candidates(compiled(), elements)] == ["fast", "slow", "odd"]
    assert candidates(compiled(), elements)[-1].rank == UNKNOWN_RANK
    assert candidates(compiled(rank="other.Nothing"), elements)[0].rank == UNKNOWN_RANK


@pytest.mark.parametrize("rank", ["", "-other.GlueCEStateEstimatedResponseTime", "other.GlueCEPolicyMaxWallClockTime"])
def test_input_data_draws_jobs_to_close_storage(rank):
    """Whatever the Rank: it decides among CEs that have as many of the files near."""
    elements = [
        CompiledCe(ce("far", GlueCEPolicyMaxWallClockTime=600)),
        CompiledCe(ce("near", close=("se1",), GlueCEStateEstimatedResponseTime=1000)),
        CompiledCe(ce("nearer", close=("se1", "se2"), GlueCEStateEstimatedResponseTime=2000)),
    ]
    replicas = {"lfn:/a": frozenset({"se1"}), "lfn:/b": frozenset({"se2", "se3"})}
    found = candidates(compiled(rank=rank, input_data=("lfn:/a", "lfn:/b")), elements, replicas)
    assert [item.ce for item in found] == ["nearer", "near", "far"]


def test_where_it_failed_comes_in_only_if_nothing_else_matches():
    elements = [CompiledCe(ce("a")), CompiledCe(ce("b"))]
    assert [item.ce for item in candidates(compiled(excluded=("a",)), elements)] == ["b"]
    assert [item.ce for item in candidates(compiled(excluded=("a", "b")), elements)] == ["b"]
    assert [item.ce for item in candidates(compiled(excluded=("a",)), elements[:1])] == ["a"]


def test_shunned_ces_get_nothing_even_if_the_only_others_failed():
    cluster = compiled(excluded=("a",))
    assert [item.ce for item in candidates(cluster, [CompiledCe(ce("a")), CompiledCe(ce("b"))])] == ["b"]
    assert [item.ce for item in cluster.candidates(frozenset({"b"}))] == ["a"]
    assert cluster.candidates(frozenset({"a", "b"})) == []
    assert [item.ce for item in cluster.candidates()] == ["b"]


def test_a_choice_is_told_with_the_runner_up():
    found = [Candidate("a", 3.0), Candidate("b", 2.5), Candidate("c", UNKNOWN_RANK)]
    best = {"rank": "3", "suited": "3", "runner_up": "b", "runner_up_rank": "2.5"}
    assert why_chosen(found, "a") == best
    assert why_chosen(found, "c") == {"rank": "undefined", "suited": "3", "runner_up": "a", "runner_up_rank": "3"}
    assert why_chosen(found[:1], "a") == {"rank": "3", "suited": "1"}
    assert why_chosen(found, "gone") == {}


def rooms(**free):
    return {name: Room(count, 8, 4) for name, count in free.items()}


def ranked(**ranks):
    return sorted((Candidate(name, rank) for name, rank in ranks.items()), key=lambda item: -item.rank)


def test_equal_ranks_spread_by_free_slots():
    given = distribute(6, ranked(a=0, b=0, c=0), rooms(a=6, b=3, c=3), False)
    assert given == {"a": 3, "b": 2, "c": 1} or given == {"a": 3, "b": 1, "c": 2}


def test_better_rank_first_then_the_rest_then_queues():
    space = rooms(best=2, other=3)
    assert distribute(4, ranked(best=1, other=0), space, True) == {"best": 2, "other": 2}
    assert distribute(6, ranked(best=1, other=0), space, True) == {"other": 1, "best": 5}
    # With the default rank queues fill evenly.
    assert distribute(8, ranked(a=1, b=0), {"a": Room(0, 8, 4), "b": Room(0, 8, 4)}, False) == {"a": 4, "b": 4}


def test_forty_jobs_spread_over_five_sites():
    found = ranked(**{f"s{n}": 0 for n in range(5)})
    given = distribute(40, found, {item.ce: Room(2, 8, 2) for item in found}, False)
    assert set(given.values()) == {8}


counts = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1)


@given(st.integers(0, 80), counts, st.booleans(), st.data())
def test_nothing_is_given_twice_or_withheld(wanted, spaces, keeps_rank, data):
    found = ranked(**{name: data.draw(st.integers(0, 2)) for name in spaces})
    space = {name: Room(free, queue, 4) for name, (free, queue) in spaces.items()}
    total = sum(free + queue for free, queue in spaces.values())
    given = distribute(wanted, found, space, keeps_rank)
    assert sum(given.values()) == min(wanted, total)
    for name, (free, queue) in spaces.items():
        assert given.get(name, 0) == free + queue - space[name].free - space[name].queue
        assert space[name].free >= 0
        assert space[name].queue >= 0


def test_room_counts_own_jobs_exactly_and_others_as_reported():
    # Reported: 2 running, 1 waiting; ours were 1 running then, so one of each is another's.
    element = ce(free=2, running=2, waiting=1)
    load = CeLoad(running=1, reported_running=1)
    assert room_of(element, load, 2, 2, 2) == Room(4 - 1 - 1 - 1, 8, 4)
    load.pending = 6  # given since the report
    assert room_of(element, load, 2, 2, 2) == Room(0, 8 - 5, 4)
    load.pending = load.running = 0  # ours have ended since
    assert room_of(element, load, 2, 2, 2).free == 2
    assert room_of(ce(free=0), CeLoad(), 2, 2, 2) == Room(0, 0, 0)
    assert room_of(element, CeLoad(ended_per_s=100), 2, 2, 2).queue == 200
    assert room_of(ce(free=4), CeLoad(), 2, 2, 2, elsewhere=3) == Room(1, 8, 4)


def test_a_job_matches_only_queues_that_let_it_run_as_long_as_it_asks_for():
    asked = JobDescription("/bin/true", requirements="other.A || other.B", limits=Limits(wall_s=61 * 60 - 59, cpu_s=1))
    cluster = Cluster.of(asked, "cms", "/CN=a", ())
    assert cluster.requirements.endswith(
        "(other.GlueCEPolicyMaxWallClockTime >= 61) && (other.GlueCEPolicyMaxCPUTime >= 1)"
    )
    short = Cluster.of(dataclasses.replace(asked, requirements="", limits=Limits(wall_s=3600)), "cms", "/CN=a", ())
    assert [CompiledCluster(one).matches(CompiledCe(ce())) for one in (cluster, short)] == [False, True]


def test_one_users_many_jobs_do_not_hold_up_anothers_one():
    found = {1: ranked(a=0), 2: ranked(a=0)}
    outcome = match_pass({1: 10_000, 2: 1}, found, set(), {"a": Room(4, 4, 4)})
    assert outcome.given == {1: {"a": 7}, 2: {"a": 1}}


def change(before, after, ce_name="ce1", at_us=0):
    def job(state):
        if state is JobState.WAITING:
            return Job()
        return Job(state=state, ce=ce_name, gatekeeper="h:1")

    return Change("/CN=a", "j", job(before) if before else None, 7, job(after), 7, at_us=at_us)


def test_board_follows_changes_in_any_order():
    board = Board()
    assert board.apply([change(None, JobState.WAITING)], 0)
    assert (board.waiting, board.owners) == ({7: 1}, {"/CN=a": 1})
    board.apply([change(JobState.READY, JobState.SCHEDULED), change(JobState.WAITING, JobState.READY)], 0)
    assert board.waiting == {}
    assert (board.load("ce1").pending, board.links) == (1, {("/CN=a", "h:1"): 1})
    assert board.apply([change(JobState.SCHEDULED, JobState.RUNNING)], 1)
    assert (board.load("ce1").pending, board.load("ce1").running) == (0, 1)
    assert board.apply([change(JobState.RUNNING, JobState.DONE)], 2)
    assert (board.load("ce1").running, board.links, board.ended, board.owners) == (0, {}, 1, {})
    assert board.rate("ce1", 2) > board.rate("ce1", 3) > 0


SECOND_US = 1_000_000


def report(board, before, at_s, **counts):
    """A CE of four slots has counted; what the board takes it to use."""
    told = dataclasses.replace(ce(**counts), produced_at_us=int(at_s * SECOND_US))
    board.reported({"ce1": told}, {"ce1": before} if before else {})
    return told


def test_a_slot_of_ours_that_a_report_gives_back_is_not_given_back_again_by_the_end_of_the_job():
    board = Board()
    board.apply([change(None, JobState.RUNNING)], 0)
    first = report(board, None, 1, free=1, running=3)  # ours and two of others
    second = report(board, first, 2, free=2, running=2)  # ours has ended at 1.9, which is heard later
    board.apply([change(JobState.RUNNING, JobState.DONE, at_us=1_900_000)], 0)
    assert used_slots(second, board.load("ce1")) == 2
    assert room_of(second, board.load("ce1"), 2, 2, 2).free == 2


def test_a_job_that_has_ended_since_a_report_was_made_is_not_taken_for_anothers():
    board = Board()
    board.apply([change(None, JobState.RUNNING)], 0)
    board.apply([change(JobState.RUNNING, JobState.DONE, at_us=1_500_000)], 0)  # is heard before
    late = report(board, None, 1, free=3, running=1)
    assert used_slots(late, board.load("ce1")) == 0


def test_a_ce_that_does_not_say_when_it_counted_is_believed_to_know_what_we_know():
    board = Board()
    board.apply([change(None, JobState.RUNNING, at_us=5)], 0)
    told = report(board, None, 0, free=1, running=3)
    assert used_slots(told, board.load("ce1")) == 3
    assert board.load("ce1").since == {}


@given(st.integers(0, 5), st.lists(st.sampled_from("qsed"), max_size=60), st.data())
def test_others_are_known_exactly_once_all_has_been_heard(others, steps, data):
    """Ours queue, start and end at a CE; updates and reports are heard in any order with any delay, each in its own."""
    queued = running = 0
    updates, reports = [], [(SLICE_US, 0, others)]
    for at, what in enumerate(steps, 1):
        at_us = at * 2 * SLICE_US
        if what == "q":
            queued += 1
            updates.append(change(JobState.READY, JobState.SCHEDULED, at_us=at_us))
        elif what == "s" and queued:
            queued, running = queued - 1, running + 1
            updates.append(change(JobState.SCHEDULED, JobState.RUNNING, at_us=at_us))
        elif what == "e" and running:
            running -= 1
            updates.append(change(JobState.RUNNING, JobState.DONE, at_us=at_us))
        elif what == "d":
            reports.append((at_us, queued, running + others))
    board, told = Board(), None
    while updates or reports:
        if reports and (not updates or data.draw(st.booleans())):
            at_us, waiting, in_use = reports.pop(0)
            told = report(board, told, at_us / SECOND_US, free=max(0, 99 - in_use), running=in_use, waiting=waiting)
        else:
            board.apply([updates.pop(0)], 0)
    load = board.load("ce1")
    assert told.running - load.reported_running == others
    assert told.waiting == load.reported_accepted
    assert used_slots(told, load) == others + running + load.pending


def test_what_is_kept_of_a_ce_that_never_reports_is_bounded():
    load = CeLoad()
    for number in range(MAX_SLICES + 50):
        load.moved(0, 1, (number + 1) * SLICE_US)
    assert len(load.since) == MAX_SLICES
    load.reported(60 * SLICE_US)
    assert (load.running, load.reported_running) == (MAX_SLICES + 50, 60)


def test_rate_of_matching():
    """Of CPU time, and generous: a loaded machine may be ten times slower."""
    elements = [CompiledCe(ce(f"ce{n}", GlueCEStateEstimatedResponseTime=n)) for n in range(192)]
    clusters = [compiled(f"other.GlueCEPolicyMaxWallClockTime >= {n}") for n in range(50)]
    start = time.process_time()
    for cluster in clusters:
        candidates(cluster, elements)
    per_cluster_s = (time.process_time() - start) / 50
    print(f"{per_cluster_s * 1000:.2f} ms for 192 CEs")
    assert per_cluster_s < 0.1


@pytest.mark.parametrize(
    ("requirements", "change"),
    [
        ("other.GlueCEPolicyMaxWallClockTime >= 720", "write other.GlueCEPolicyMaxWallClockTime >= 60 instead of"),
        ("other.GlueCEPolicyMaxWallClockTime > 720", "write other.GlueCEPolicyMaxWallClockTime > 59 instead of"),
        ("other.GlueCEPolicyMaxWallClockTime < 20", "write other.GlueCEPolicyMaxWallClockTime < 61 instead of"),
        ("720 <= other.GlueCEPolicyMaxWallClockTime", "write 60 <= other.GlueCEPolicyMaxWallClockTime instead of"),
        ('other.GlueCEUniqueID == "ce9"', 'write other.GlueCEUniqueID == "ce1" instead of other.GlueCEUniqueID'),
        ('Member("X", other.GlueHostApplicationSoftwareRunTimeEnvironment)', 'write Member("VO-cms-CMSSW_1", other'),
        ("(other.GlueCEPolicyMaxWallClockTime > 720 || other.GlueCEPolicyMaxWallClockTime > 70)", "> 59 instead of"),
        ("other.GlueNothing > 3", "leave out other.GlueNothing > 3"),
        ('other.GlueCEPolicyMaxWallClockTime > "a"', "leave out"),
        ("false", "leave out false"),
    ],
)
def test_the_smallest_change_that_would_match(requirements, change):
    told = explain(compiled(requirements), CompiledCe(ce()))
    assert change in told.change
    if told.change.startswith("write"):
        changed = told.change.removeprefix("write ").partition(" instead of")[0]
        assert compiled(changed).matches(CompiledCe(ce()))


def test_every_failing_term_has_its_change():
    told = explain(
        compiled("other.GlueNothing > 3 && true && other.GlueCEPolicyMaxWallClockTime >= 90"), CompiledCe(ce())
    )
    assert told.failing_term == "other.GlueNothing > 3"
    assert told.change.count(";") == 1
    assert "none: " in explain(compiled(vo="atlas"), CompiledCe(ce())).change


def test_fuzzy_rank_draws_the_better_more_often_and_places_every_job():
    found = [Candidate("good", 100.0), Candidate("bad", 0.0), Candidate("unknown", UNKNOWN_RANK)]
    chance = random.Random(1)
    first = Counter(draw(found, chance)[0].ce for _ in range(300))
    assert first["good"] > 200
    assert set(first) == {"good", "bad", "unknown"}
    rooms = {name: Room(40, 10, 40) for name in ("good", "bad", "unknown")}
    given = match_pass({1: 100}, {1: found}, {1}, rooms, {1: chance}).given[1]
    assert sum(given.values()) == 100
    assert len(given) == 3


def test_a_job_of_several_slots_matches_sites_that_start_such_jobs_and_have_the_slots():
    cluster = CompiledCluster(Cluster.of(JobDescription("/bin/true", slots=4), "cms", "/CN=a", ()))
    tagged = {"GlueHostApplicationSoftwareRunTimeEnvironment": ("X", "GRIDFABRIC-GANG")}
    found = [ce(GlueCEInfoTotalCPUs=count, **tags) for count, tags in ((4, tagged), (3, tagged), (4, {}))]
    assert [cluster.matches(CompiledCe(one)) for one in found] == [True, False, False]


def test_output_se_chooses_only_ces_close_to_it_and_says_where_output_goes():
    text = 'Executable = "/bin/true"; OutputSE = "se1"; OutputData = {[OutputFile = "o"]};'
    job = next(normalise(text).jobs())
    assert [item.storage_element for item in job.output_data] == ["se1"]
    cluster = CompiledCluster(Cluster.of(job, "cms", "/CN=a", ()))
    near, far = (ce(name, GlueCESEBindGroupSEUniqueID=ses) for name, ses in (("n", ("se1", "se2")), ("f", ("se2",))))
    assert (cluster.matches(CompiledCe(near)), cluster.matches(CompiledCe(far))) == (True, False)
