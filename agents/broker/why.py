"""Why a job waits for a match, in one sentence. Pure: what the last matching pass saw comes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from agents.broker.matching import CompiledCe, CompiledCluster, explain
from agents.broker.model import ComputingElement
from fabric.glue_model import PRODUCTION

MAX_LOOKED = 20
"""CEs that are asked why they do not match."""
UNLIMITED = 999_999_999
"""What GLUE 1.3 has where there is no limit."""
MAX_TERM = 120
"""Characters of a term that are shown."""


def no_ce_matches(cluster: CompiledCluster, ces: Sequence[CompiledCe]) -> str:
    """The term that fails at most CEs, and what one of them has instead."""
    looked = [explain(cluster, ce, changes=0) for ce in sorted(ces, key=lambda ce: not ce.ce.alive)[:MAX_LOOKED]]
    failing = Counter(outcome.failing_term for outcome in looked if not outcome.matches)
    if not failing:
        return "a CE that matches has come just now"
    ((term, count),) = failing.most_common(1)
    one = next(outcome for outcome in looked if outcome.failing_term == term)
    shown = term if len(term) <= MAX_TERM else f"{term[:MAX_TERM]} ..."
    return (
        f"none of the {len(ces)} CEs matches: {shown} is not so at {count} of {len(looked)}, for instance {one.ce}: "
        f"{one.explanation}; ask grid job list-match"
    )


def use_of(ce: ComputingElement) -> str:
    """What a CE has of jobs, beside the limits of its queue where it publishes any."""
    running = _of_limit(ce.running, ce.attributes.get("GlueCEPolicyMaxRunningJobs"))
    waiting = _of_limit(ce.waiting, ce.attributes.get("GlueCEPolicyMaxWaitingJobs"))
    status = str(ce.attributes.get("GlueCEStateStatus", PRODUCTION))
    closed = "" if status == PRODUCTION else f", and its queue is {status.lower()}"
    free = "" if ce.free_slots else ", no slot is free"
    return f"{running} jobs run and {waiting} wait{free}{closed}"


def _of_limit(count: int, limit: object) -> str:
    return f"{count} of at most {limit}" if isinstance(limit, int) and limit < UNLIMITED else str(count)


def no_room(
    matching: Sequence[ComputingElement], offered: Mapping[str, int], troubles: Mapping[str, str], used: int
) -> str:
    """`offered`: jobs that each could take in the last pass; `troubles`: why some get none; `used`: the owner's jobs
    at CEs."""
    room = sum(offered.get(ce.id, 0) for ce in matching)
    if room:
        return (
            f"the {len(matching)} matching CEs took {room} jobs more in the last round, and they went to others: the "
            f"oldest first, and owners with fewer jobs at CEs (here {used})"
        )
    silent = [ce.id for ce in matching if ce.id in troubles]
    if not silent:
        one = f", for instance {matching[0].id}: {use_of(matching[0])}" if matching else ""
        return f"the {len(matching)} matching CEs are full{one}"
    told = f"{silent[0]}: {troubles[silent[0]]}"
    if len(silent) == len(matching):
        return f"none of the {len(matching)} matching CEs gets jobs now, for instance {told}"
    return f"of {len(matching)} matching CEs {len(silent)} get no jobs now, for instance {told}; the others are full"
