"""Why a job waits, in one sentence."""

from unit.broker.test_broker_matching import ce

from agents.broker.matching import CompiledCe, CompiledCluster
from agents.broker.model import Cluster, JobDescription
from agents.broker.why import no_ce_matches, no_room, use_of


def cluster(requirements):
    return CompiledCluster(Cluster.of(JobDescription("/bin/true", requirements=requirements), "cms", "/CN=a", ()))


def test_the_term_that_fails_at_most_ces_is_told_with_what_a_ce_has():
    ces = [CompiledCe(ce(f"h:1/jobmanager-fabric-{name}")) for name in "abc"]
    told = no_ce_matches(cluster("other.GlueCEPolicyMaxWallClockTime >= 99999"), ces)
    assert told.startswith("none of the 3 CEs matches: other.GlueCEPolicyMaxWallClockTime >= 99999 is not so at 3 of 3")
    assert "GlueCEPolicyMaxWallClockTime is " in told and told.endswith("ask grid job list-match")


def test_a_long_term_is_cut_and_many_ces_are_looked_at_in_part():
    ces = [CompiledCe(ce(f"h:{number}/jobmanager-fabric-q")) for number in range(1, 61)]
    told = no_ce_matches(cluster(" || ".join(['other.GlueCEUniqueID == "nobody"'] * 50)), ces)
    assert "none of the 60 CEs" in told and "at 20 of 20" in told and len(told) < 1000


def test_a_ce_that_came_meanwhile_is_no_riddle():
    assert no_ce_matches(cluster("true"), [CompiledCe(ce("h:1/jobmanager-fabric-q"))]) == (
        "a CE that matches has come just now"
    )


def test_what_keeps_jobs_from_ces_that_match():
    a, b = ce("a", free=0, running=4, waiting=2), ce("b")
    assert no_room([a, b], {"a": 0}, {}, 3) == (
        "the 2 matching CEs are full, for instance a: 4 jobs run and 2 wait, no slot is free"
    )
    assert "took 5 jobs more" in no_room([a, b], {"a": 5}, {}, 3)
    assert "fewer jobs at CEs (here 3)" in no_room([a, b], {"a": 5}, {}, 3)
    assert no_room([a], {}, {"a": "no answer"}, 0) == (
        "none of the 1 matching CEs gets jobs now, for instance a: no answer"
    )
    assert no_room([a, b], {}, {"b": "no answer"}, 0).startswith("of 2 matching CEs 1 get no jobs now")


def test_the_limits_of_a_queue_are_told_beside_what_it_has():
    limited = ce("a", free=0, running=2, waiting=9, GlueCEPolicyMaxRunningJobs=2, GlueCEPolicyMaxWaitingJobs=10)
    assert use_of(limited) == "2 of at most 2 jobs run and 9 of at most 10 wait, no slot is free"
    shut = ce("a", GlueCEStateStatus="Draining", GlueCEPolicyMaxRunningJobs=999_999_999)
    assert use_of(shut) == "0 jobs run and 0 wait, and its queue is draining"
