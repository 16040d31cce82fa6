"""What a failure's cause decides; and that no behaviour of CEs makes a job go round for ever, or lost."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.broker import machine as m
from agents.broker import policy
from agents.broker.blacklist import Blacklist
from agents.broker.matching import CompiledCluster
from agents.broker.model import ENDED, Cluster, JobState
from agents.broker.policy import RULES, Action, rule_for


def at_ce(**fields) -> m.Job:
    return m.Job(JobState.SCHEDULED, ce="a", gatekeeper="h:1", sent=True, **fields)


@pytest.mark.parametrize(
    ("cause", "state", "excluded", "pause_s"),
    [
        ("WORKER_LOST", JobState.WAITING, ("a",), 0.0),
        ("SOMETHING_NEW", JobState.WAITING, ("a",), 0.0),
        ("SANDBOX_EVICTED", JobState.WAITING, (), 0.0),
        ("INPUT_DATA_UNAVAILABLE", JobState.WAITING, (), 15.0),
        ("OUTPUT_DATA_MISSING", JobState.ABORTED, (), 0.0),
    ],
)
def test_the_cause_decides(cause, state, excluded, pause_s):
    step = m.step(at_ce(), m.Failed(1, cause, "so it was"))
    assert (step.job.state, step.job.excluded, step.pause_s, step.cause) == (state, excluded, pause_s, cause)
    fields = step.log[0].fields
    assert (fields["reason"], fields["text"]) == (cause, "so it was")
    if state is JobState.WAITING:
        assert (fields["failed_ce"], fields["retry"], fields["left"]) == ("a", "shallow", "2 shallow, 1 deep")
        assert fields["action"] == rule_for(cause).action.value


def test_a_hopeless_cause_spends_no_retry_and_a_retry_that_is_spent_says_so():
    assert m.step(at_ce(deep_left=9), m.Failed(1, "OUTPUT_DATA_MISSING", "x", True)).log[0].fields["text"] == "x"
    step = m.step(at_ce(deep_left=0), m.Failed(1, "WORKER_LOST", "gone", True))
    assert step.log[0].fields == {"reason": "WORKER_LOST", "text": "gone; no retry is left (RetryCount)"}
    assert step.cause == "WORKER_LOST"


def test_pauses_double_up_to_ten_minutes():
    rule = RULES["OUTPUT_DATA_FAILED"]
    assert [policy.pause_s(rule, attempt) for attempt in (1, 2, 3, 99)] == [60.0, 120.0, 240.0, policy.MAX_PAUSE_S]
    assert policy.pause_s(RULES["WORKER_LOST"], 99) == 0.0


def test_a_ce_that_says_not_now_costs_no_retry_but_not_for_ever():
    ready = m.Job(JobState.READY, ce="a", gatekeeper="h:1", sent=True, shallow_left=0)
    step = m.step(ready, m.Rejected(1, "QUEUE_FULL", "the queue is full"))
    assert (step.job.state, step.job.reason, step.cause) == (JobState.WAITING, "QUEUE_FULL: the queue is full", "")
    assert m.step(ready._replace(cancelling=True), m.Rejected(1, "QUEUE_FULL")).job.state is JobState.CANCELLED
    assert m.step(ready, m.Rejected(1, "ACCESS_DENIED")).job.state is JobState.ABORTED
    # What a worker says after the CE took the job is a failure, whatever its name.
    assert m.step(at_ce(shallow_left=0), m.Failed(1, "QUEUE_FULL")).job.state is JobState.ABORTED
    last = ready._replace(attempt=policy.MAX_ATTEMPTS)
    for event in (m.Rejected(policy.MAX_ATTEMPTS, "DRAINING"), m.TakenBack("CE_LOST")):
        step = m.step(last, event)
        assert (step.job.state, step.job.reason) == (JobState.ABORTED, "TOO_MANY_ATTEMPTS")
    waited_s = sum(policy.pause_of_returned_s(attempt) for attempt in range(1, policy.MAX_ATTEMPTS))
    assert 6 * 3600 < waited_s < 24 * 3600


def test_the_choice_is_logged_as_it_was_told():
    told = {"rank": "-3", "runner_up": "b", "runner_up_rank": "-4", "suited": "2"}
    assert m.step(m.Job(), m.Matched("a", "h:1", told)).log[0].fields == {"ce": "a", **told}


CES = ("a", "b", "c")
outcomes = st.sampled_from([*RULES, "SOMETHING_NEW", "RETURNED", "ENDED"])
behaviours = st.fixed_dictionaries({ce: st.lists(st.tuples(outcomes, st.booleans()), max_size=4) for ce in CES})


def outcome(job: m.Job, cause: str, started: bool) -> list[m.Event]:
    if cause == "RETURNED":
        return [m.TakenBack("CE_UNREACHABLE")]
    if rule_for(cause).action is Action.LATER:
        return [m.Sending(), m.Rejected(job.attempt, cause)]
    start = [m.Sending(), m.Accepted(job.attempt)] + ([m.Started(job.attempt)] if started else [])
    return [*start, m.Ended(job.attempt) if cause == "ENDED" else m.Failed(job.attempt, cause, "", started)]


@given(behaviours, st.integers(0, 3), st.integers(0, 3), st.integers(1, 6), st.integers(0, 10**9))
@settings(max_examples=150, deadline=None)
def test_every_job_ends_within_its_retries_and_never_twice_at_a_ce_while_another_suits(
    behaviour, shallow, deep, count, seed
):
    """CEs do what they do again and again; brokers and their clocks go on until every job has ended."""
    chance, blacklist, now_s = random.Random(seed), Blacklist(), 0.0
    jobs = dict.fromkeys(range(count), m.Job(shallow_left=shallow, deep_left=deep))
    not_before = dict.fromkeys(jobs, 0.0)
    calls, spent = Counter(), Counter()
    failed_at = dict.fromkeys(jobs, "")
    for _ in range(count * (policy.MAX_ATTEMPTS + shallow + deep + 2)):
        waiting = [number for number, job in jobs.items() if job.state not in ENDED]
        if not waiting:
            break
        number = chance.choice(waiting)
        job, now_s = jobs[number], max(now_s, not_before[number]) + chance.random()
        cluster = CompiledCluster(Cluster(1, "", "", "cms", "o", excluded=job.excluded))
        cluster.ranks = {ce: -float(place) for place, ce in enumerate(CES)}
        found = cluster.candidates(blacklist.shunned("o", now_s))
        if not found:
            now_s += 60.0
            assert blacklist.listings(now_s)
            continue
        ce = found[0].ce
        assert ce != failed_at[number] or len(found) == 1
        events: list[m.Event] = [m.Matched(ce, "h:1")]
        if chance.random() < 0.02:
            events += [m.GivenUp("PROXY_EXPIRED", "")]
        else:
            script = behaviour[ce] or [("ENDED", True)]
            cause, started = script[calls[ce] % len(script)]
            calls[ce] += 1
            events += outcome(job, cause, started)
        for event in events:
            step = m.step(jobs[number], event)
            assert not step.refused
            after = jobs[number] = step.job
            not_before[number] = now_s + step.pause_s
            if step.cause:
                blacklist.failed(ce, "o", step.cause, now_s)
                failed_at[number] = ce if rule_for(step.cause).action in (Action.ELSEWHERE, Action.LATER) else ""
                spent[number] += after.state is JobState.WAITING
            elif after.state is JobState.WAITING:
                failed_at[number] = job.excluded[0] if job.excluded else ""
    assert all(job.state in ENDED for job in jobs.values()), jobs
    for number, job in jobs.items():
        assert spent[number] == shallow - job.shallow_left + deep - job.deep_left <= shallow + deep
        assert job.attempt <= policy.MAX_ATTEMPTS + shallow + deep
