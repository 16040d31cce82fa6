"""Watch streams: put together, bounded, and only what was asked for. Wire: what cannot be read is named."""

import pytest
from gridfabric.bookkeeping.v1 import bookkeeping_pb2 as pb

from agents.bookkeeping import wire
from agents.bookkeeping.client import event_name, state_name, state_number
from agents.bookkeeping.model import EventType, JobRecord, JobState
from agents.bookkeeping.watchers import Watchers
from fabric.errors import InvalidRequest


def record(job_id, state=1, parent=""):
    return JobRecord(job_id, state=state, parent=parent)


def test_a_slow_reader_gets_the_newest_record_of_each_job():
    watchers = Watchers()
    watcher = watchers.add(["a", "p"])
    watchers.publish([record("a", 1), record("b", 1), record("c", 1, "p"), record("a", 2), record("c", 5, "p")])
    assert [(item.job_id, item.state) for item in watcher.take()] == [("a", 2), ("c", 5)]
    assert watcher.take() == []
    assert not watcher.changed.is_set()


def test_parents_themselves_are_not_reported():
    watchers = Watchers()
    watcher = watchers.add(["p"])
    watchers.publish([JobRecord("p", is_parent=1)])
    assert watcher.take() == []


def test_nothing_is_left_of_a_reader_that_went():
    watchers = Watchers()
    first, second = watchers.add(["a"]), watchers.add(["a", "b"])
    watchers.remove(first)
    watchers.publish([record("a")])
    assert first.pending == {}
    assert list(second.pending) == ["a"]
    watchers.remove(second)
    assert (watchers.count, watchers._by_key) == (0, {})


def good(**changes):
    values = {"job_id": "j", "source": "s", "sequence": 1, "at_us": 5, "type": 4, "attempt": 1, **changes}
    return pb.RecordRequest(events=[pb.Event(**values)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": 0}, "type 0 is unknown"),
        ({"type": 77}, "type 77 is unknown"),
        ({"job_id": ""}, "job id"),
        ({"job_id": "x" * 300}, "short"),
        ({"source": ""}, "source"),
        ({"sequence": 0}, "sequence"),
        ({"at_us": 0}, "time"),
        ({"attempt": -1}, "attempt"),
        ({"fields": {"text": "x" * 20_000}}, "larger"),
    ],
)
def test_events_that_cannot_be_read_are_named(changes, words):
    with pytest.raises(InvalidRequest, match=words) as caught:
        wire.events_from_wire(good(**changes))
    assert caught.value.reason == "EVENT_INVALID"


def test_events_go_over_the_wire_unchanged():
    (event,) = wire.events_from_wire(good(fields={"ce": "x"}))
    assert event.type is EventType.TRANSFERRED
    assert wire.event_to_wire(event) == good(fields={"ce": "x"}).events[0]


def test_pages():
    assert wire.page_from_token(wire.page_token(12345)) == 12345
    assert wire.page_token(0) == ""
    for token in ("x", "!!!!", "AAAA", "\u00e9"):
        with pytest.raises(InvalidRequest):
            wire.page_from_token(token)
    with pytest.raises(InvalidRequest):
        wire.query_from_wire(pb.QueryRequest(page_size=5001), 10)


def test_a_parents_state_is_its_childrens():
    summary = wire.summary_to_wire(
        JobRecord("p", is_parent=1, state=1), {int(JobState.DONE): 2, int(JobState.RUNNING): 1}
    )
    assert state_name(summary.state) == "RUNNING"
    assert dict(summary.children) == {"DONE": 2, "RUNNING": 1}


def test_names():
    assert state_number("done") == JobState.DONE
    assert event_name(7) == "RESUBMISSION"
    assert [pb.JobState.Name(state) for state in range(10)] == [f"JOB_STATE_{state.name}" for state in JobState]
    assert {pb.EventType.Value(f"EVENT_TYPE_{kind.name}") for kind in EventType} == {int(kind) for kind in EventType}
