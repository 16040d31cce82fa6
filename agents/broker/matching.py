"""Which computing element a job goes to. Pure: CE views and clusters of jobs in, choices and explanations out.

Requirements and Rank are ClassAd expressions over ``other``, the GLUE 1.3 attributes of a CE. Jobs that match alike
form a cluster and are matched once per change of a CE. Slots are counted by what the broker itself knows of its jobs,
so that many passes between two reports of a CE do not give the same free slot twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

import classad2

from agents.broker.jdl_syntax import Token, TokenKind, conjuncts, join_tokens, tokenise
from agents.broker.model import Cluster, ComputingElement, MatchOutcome
from fabric import access

DEFAULT_REQUIREMENTS = 'other.GlueCEStateStatus == "Production"'
DEFAULT_RANK = "-other.GlueCEStateEstimatedResponseTime"
UNKNOWN_RANK = -1e300
"""A rank that is no number: behind every other, still a match (gLite WMS guide, "Rank")."""
CLOSE_STORAGE_BONUS = 1e6
"""Added to a CE's rank per input file that has a replica close to it: those with most of them first, the JDL's Rank
among equals (gLite WMS guide, "InputData")."""

LEAST_CHANCE = 0.05
"""Weight of the worst rank when CEs are drawn; the best has 1 more."""
MAX_DRAWS = 32
"""Draws for the jobs of one cluster in one pass; those of one draw go together."""
SLICE_US = 10_000
MAX_SLICES = 1000
"""Of what happened at a CE since its last report: 10 s. A report that takes longer is taken as if it had none."""
MAX_CHANGES = 8
"""Failing terms for which a change is looked for, for one CE."""
MAX_LITERALS = 20
"""Literals of one term that are tried."""

_REFERENCE = re.compile(r"\bother\s*\.\s*([A-Za-z_][A-Za-z0-9_]*)", re.IGNORECASE)


class CompiledCe:
    """A CE as a ClassAd."""

    def __init__(self, ce: ComputingElement) -> None:
        self.ce = ce
        self.lowered = {name.lower(): value for name, value in ce.attributes.items()}
        self.vos = frozenset(ce.vos)

    def lets_in(self, cluster: Cluster) -> bool:
        """Whether members of the cluster's VO with its groups and roles may run jobs there."""
        if cluster.vo in self.vos:
            return True
        return bool(self.ce.fqans) and access.admits(self.ce.fqans, cluster.vo, cluster.fqans)

    @cached_property
    def ad(self) -> classad2.ClassAd:
        """Made when first asked for: the default Requirements and Rank need none."""
        ad = classad2.ClassAd()
        for name, value in self.ce.attributes.items():
            ad[name] = list(value) if isinstance(value, tuple) else value
        ad["Requirements"] = True
        return ad


class CompiledCluster:
    """A cluster's expressions, parsed once."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.text = cluster.requirements or DEFAULT_REQUIREMENTS
        self.requirements = classad2.ExprTree(self.text)
        self.rank = classad2.ExprTree(cluster.rank or DEFAULT_RANK)
        self.has_default_rank = not cluster.rank
        self.has_default_requirements = not cluster.requirements
        self.ranks: dict[str, float] = {}
        """By CE id: the rank of those that match, as of ``seen``."""
        self.seen = -1
        """The version of the tree up to which ``ranks`` is good."""
        self.matched_at = -math.inf
        """Monotonic: when the replicas of its input data were looked up for it."""
        self._ordered: list[Candidate] | None = None
        self._shunned: frozenset[str] = frozenset()
        self.ad = classad2.ClassAd()
        self.ad["VirtualOrganisation"] = cluster.vo
        self.ad["Owner"] = cluster.owner
        for name, text in cluster.extra:
            self.ad[name] = classad2.ExprTree(text)
        self.ad["Requirements"] = self.requirements

    def matches(self, ce: CompiledCe) -> bool:
        """Status, VO and Requirements. A CE that is not heard of matches nothing."""
        cluster = self.cluster
        if not ce.ce.alive or not ce.lets_in(cluster):
            return False
        if self.has_default_requirements:  # what makes a CE alive
            return True
        return self.ad.symmetricMatch(ce.ad)  # five times as fast as evaluating the expression alone

    def rank_of(self, ce: CompiledCe, close_files: int = 0) -> float:
        """The CE's rank; UNKNOWN_RANK if the expression gives no number for it."""
        if self.has_default_rank:
            response_s = ce.lowered.get("gluecestateestimatedresponsetime")
            value = -response_s if isinstance(response_s, (int, float)) else None
        else:
            value = self.rank.eval(self.ad, ce.ad)
        # classad2 gives *undefined* and *error* as kinds of integers.
        if isinstance(value, (bool, classad2.Value)) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return UNKNOWN_RANK
        return float(value) + CLOSE_STORAGE_BONUS * close_files

    def update(
        self,
        changed: Iterable[str],
        ces: Mapping[str, CompiledCe],
        replicas: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        """Match these CEs again; those that are not in ``ces`` any more are dropped."""
        for key in changed:
            ce = ces.get(key)
            if ce is not None and self.matches(ce):
                near = close_files(self.cluster, ce.ce, replicas) if replicas else 0
                self.ranks[key] = self.rank_of(ce, near)
            else:
                self.ranks.pop(key, None)
        self._ordered = None

    def candidates(self, shunned: frozenset[str] = frozenset()) -> list[Candidate]:
        """Matching CEs that are not shunned, best rank first.

        CEs where these jobs failed come in only if there are no others, and the one where they failed last only if it
        is the last one left.
        """
        if self._ordered is None or shunned != self._shunned:
            excluded = self.cluster.excluded
            left = [Candidate(key, rank) for key, rank in self.ranks.items() if key not in shunned]
            found = [item for item in left if item.ce not in excluded]
            found = found or [item for item in left if item.ce != excluded[0]] or left
            found.sort(key=lambda item: (-item.rank, item.ce))
            self._ordered, self._shunned = found, shunned
        return self._ordered


def close_files(cluster: Cluster, ce: ComputingElement, replicas: Mapping[str, frozenset[str]]) -> int:
    """How many of the cluster's input files have a replica on a storage element close to this CE."""
    return sum(1 for lfn in cluster.input_data if not replicas.get(lfn, frozenset()).isdisjoint(ce.close_storage))


@dataclass(slots=True)
class CeLoad:
    """What this broker knows of its own jobs at a CE, and what it may still put there."""

    pending: int = 0
    """Ours, chosen for it and not yet running."""
    accepted: int = 0
    """Of these, what it has acknowledged."""
    running: int = 0
    """Ours, running."""
    reported_at_us: int = 0
    """When the CE counted for its last report, by its own clock."""
    reported_accepted: int = 0
    """Ours at that moment, whenever we heard of them: the rest of what it reported is others'."""
    reported_running: int = 0
    since: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    """By slice of its clock since then: by how much ours have changed, (accepted, running)."""
    ended_per_s: float = 0.0
    """How fast our jobs have been ending there lately."""

    def moved(self, accepted: int, running: int, at_us: int) -> None:
        """Ours have changed by this. What happened before the last report belongs to it, though it is heard later."""
        self.accepted += accepted
        self.running += running
        if at_us <= self.reported_at_us:
            self.reported_accepted += accepted
            self.reported_running += running
            return
        slice_ = at_us // SLICE_US
        before = self.since.get(slice_, (0, 0))
        self.since[slice_] = (before[0] + accepted, before[1] + running)
        if len(self.since) > MAX_SLICES:
            del self.since[min(self.since)]

    def reported(self, at_us: int) -> None:
        """The CE counted then; 0: it does not say when, so all that is known of ours is in it."""
        self.reported_at_us = at_us
        self.since = {key: moved for key, moved in self.since.items() if 0 < at_us < key * SLICE_US}
        self.reported_accepted = self.accepted - sum(accepted for accepted, _ in self.since.values())
        self.reported_running = self.running - sum(running for _, running in self.since.values())


@dataclass(slots=True)
class Room:
    """Free slots and queue space of one CE during one pass."""

    free: int
    queue: int
    slots: int


def used_slots(ce: ComputingElement, load: CeLoad) -> int:
    """Slots that its jobs have or are about to have: others' are what the CE reported beyond ours; ours are counted
    exactly by their own events."""
    return max(0, ce.running - load.reported_running) + load.running + load.pending


def room_of(
    ce: ComputingElement, load: CeLoad, queue_ahead_s: float, queue_factor: float, least: int, elsewhere: int = 0
) -> Room:
    """How many more jobs a CE takes: its free slots, and a queue that feeds it for ``queue_ahead_s`` at its own speed.

    ``elsewhere``: slots used by the other queues of its gatekeeper, which share them.
    """
    slots = ce.slots
    others_waiting = max(0, ce.waiting - load.reported_accepted)
    free = slots - used_slots(ce, load) - others_waiting - elsewhere
    queue = max(least, math.ceil(queue_factor * slots), math.ceil(load.ended_per_s * queue_ahead_s)) if slots else 0
    if free < 0:
        queue, free = max(0, queue + free), 0
    return Room(free, queue, slots)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A CE that matches a cluster."""

    ce: str
    rank: float


def why_chosen(found: Sequence[Candidate], ce: str) -> dict[str, str]:
    """What bookkeeping is told of the choice of a CE among the candidates, best first: ranks, and the runner-up.

    The runner-up is the best of the others; it may have the better rank where the best was full.
    """
    best = next((item for item in found if item.ce == ce), None)
    if best is None:
        return {}
    told = {"rank": _rank_text(best.rank), "suited": str(len(found))}
    second = next((item for item in found[:2] if item.ce != ce), None)
    if second is not None:
        told |= {"runner_up": second.ce, "runner_up_rank": _rank_text(second.rank)}
    return told


def _rank_text(rank: float) -> str:
    return f"{rank:.10g}" if rank > UNKNOWN_RANK else "undefined"


def candidates(
    cluster: CompiledCluster, ces: Iterable[CompiledCe], replicas: Mapping[str, frozenset[str]] | None = None
) -> list[Candidate]:
    """The candidates of a cluster among these CEs."""
    by_id = {ce.ce.id: ce for ce in ces}
    cluster.ranks.clear()
    cluster.update(by_id, by_id, replicas)
    return cluster.candidates()


def distribute(wanted: int, found: Sequence[Candidate], rooms: Mapping[str, Room], keeps_rank: bool) -> dict[str, int]:
    """How many of ``wanted`` jobs go to each candidate; ``rooms`` is debited.

    Free slots first, the best rank first, equal ranks by the share of slots that is still free. What is left goes to
    queues: with the user's own Rank again best first, else to the shortest queue per slot.
    """
    given: dict[str, int] = {}
    for tier in _tiers(found):
        wanted = _spread_free(wanted, tier, rooms, given)
    for tier in _tiers(found) if keeps_rank else [[item.ce for item in found]]:
        wanted = _spread_queue(wanted, tier, rooms, given)
    return given


def _tiers(found: Sequence[Candidate]) -> list[list[str]]:
    """Candidates of equal rank together."""
    tiers: list[list[str]] = []
    rank: float | None = None
    for item in found:
        if rank is None or item.rank != rank:
            tiers.append([])
            rank = item.rank
        tiers[-1].append(item.ce)
    return tiers


def _spread_free(wanted: int, tier: Sequence[str], rooms: Mapping[str, Room], given: dict[str, int]) -> int:
    """In proportion to free slots; the remainders go to the largest fractions."""
    free = {ce: rooms[ce].free for ce in tier if ce in rooms and rooms[ce].free > 0}
    total = sum(free.values())
    if wanted <= 0 or not total:
        return wanted
    take = min(wanted, total)
    shares = {ce: take * count // total for ce, count in free.items()}
    rest = take - sum(shares.values())
    by_fraction = sorted(free, key=lambda ce: (-(take * free[ce] % total), ce))
    for ce in by_fraction[:rest]:
        shares[ce] += 1
    for ce, count in shares.items():
        if count:
            rooms[ce].free -= count
            given[ce] = given.get(ce, 0) + count
    return wanted - take


def _spread_queue(wanted: int, tier: Sequence[str], rooms: Mapping[str, Room], given: dict[str, int]) -> int:
    """In proportion to the queue space that is left, which is larger where work flows faster."""
    while wanted > 0:
        space = {ce: rooms[ce].queue for ce in tier if ce in rooms and rooms[ce].queue > 0}
        total = sum(space.values())
        if not total:
            return wanted
        take = min(wanted, total)
        for ce in sorted(space, key=lambda ce: (-space[ce], ce)):
            count = min(space[ce], wanted, math.ceil(take * space[ce] / total))
            if count <= 0:
                continue
            rooms[ce].queue -= count
            given[ce] = given.get(ce, 0) + count
            wanted -= count
    return wanted


def explain(cluster: CompiledCluster, ce: CompiledCe, near: int = 0, changes: int = MAX_CHANGES) -> MatchOutcome:
    """Whether a CE matches; if not, the first term that fails, in JDL words, with what the CE has, and the smallest
    changes of so many terms."""
    if not ce.ce.alive:
        status = ce.lowered.get("gluecestatestatus", "unknown")
        told = f"the CE is not heard of; its status is {status}"
        return MatchOutcome(ce.ce.id, False, 0.0, DEFAULT_REQUIREMENTS, told, "none: wait for the CE")
    if not ce.lets_in(cluster.cluster):
        vo, shown = cluster.cluster.vo, cluster.cluster.fqans
        term = f'Member("VO:{vo}", other.GlueCEAccessControlBaseRule)'
        rules = [f"VO:{name}" for name in sorted(ce.vos)] + [f"VOMS:{fqan}" for fqan in ce.ce.fqans]
        told = f"the CE takes {', '.join(rules) or 'no VO'}"
        if any(fqan.startswith(f"/{vo}/") for fqan in ce.ce.fqans):
            told += f"; your proxy shows {', '.join(shown) or 'no groups or roles'}"
        return MatchOutcome(ce.ce.id, False, 0.0, term, told, "none: another VO, group or role")
    if cluster.matches(ce):
        return MatchOutcome(ce.ce.id, True, cluster.rank_of(ce, near))
    failing = [
        (term, value)
        for term in conjuncts(cluster.text)
        if (value := classad2.ExprTree(term).eval(cluster.ad, ce.ad)) is not True
    ]
    if not failing:
        told = "the whole is not true for this CE"
        return MatchOutcome(ce.ce.id, False, 0.0, cluster.text, told, f"leave out {cluster.text}")
    term, value = failing[0]
    change = "; ".join(smallest_change(term, cluster.ad, ce) for term, _ in failing[:changes])
    return MatchOutcome(ce.ce.id, False, 0.0, term, _values(term, ce, value), change)


def smallest_change(term: str, job: classad2.ClassAd, ce: CompiledCe) -> str:
    """What to write instead of a term for this CE to suit: one literal changed, the nearest number of several.

    Every proposal is evaluated before it is made; where none helps, the term has to go.
    """
    tokens = [token for token in tokenise(term) if token.kind is not TokenKind.END]
    literals = [number for number, token in enumerate(tokens) if token.kind in (TokenKind.NUMBER, TokenKind.STRING)][
        :MAX_LITERALS
    ]
    published = [ce.lowered[name.lower()] for name in _REFERENCE.findall(term) if name.lower() in ce.lowered]
    best: tuple[float, str] | None = None
    for number in literals:
        for text, distance in _instead_of(tokens[number], published):
            if best is not None and distance >= best[0]:
                continue
            instead = Token(tokens[number].kind, text, 1, 1)
            changed = join_tokens((*tokens[:number], instead, *tokens[number + 1 :]))
            if classad2.ExprTree(changed).eval(job, ce.ad) is True:
                best = (distance, changed)
    return f"write {best[1]} instead of {term}" if best else f"leave out {term}"


def _instead_of(literal: Token, published: Sequence[object]) -> list[tuple[str, float]]:
    """Values to put in the place of a literal, and how far each is from it."""
    found: list[tuple[str, float]] = []
    if literal.kind is TokenKind.STRING:
        for value in published:
            texts = value if isinstance(value, (tuple, list)) else (value,)  # pyright: ignore[reportUnknownVariableType]
            found += [(f'"{text}"', 1.0) for text in texts if isinstance(text, str) and '"' not in text]
        return found
    asked = float(literal.text)
    for value in published:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            near = [value, value - 1, value + 1] if value == int(value) else [value]
            found += [(str(item), abs(item - asked)) for item in near if item >= 0]
    return sorted(found, key=lambda item: item[1])


def _values(term: str, ce: CompiledCe, value: object) -> str:
    parts: list[str] = []
    for name in dict.fromkeys(_REFERENCE.findall(term)):
        if name.lower() in ce.lowered:
            parts.append(f"{name} is {_shown(ce.lowered[name.lower()])}")
        else:
            parts.append(f"{name} is not published by the CE")
    if isinstance(value, classad2.Value) and value == classad2.Value.Error:
        parts.append("the term is an error (types that do not compare)")
    return "; ".join(parts) or "the term is not true"


def _shown(value: object) -> str:
    if isinstance(value, (tuple, list)):
        text = ", ".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        return "{" + (text if len(text) < 200 else text[:200] + " ...") + "}"
    return str(value) if not isinstance(value, str) else f'"{value}"'


@dataclass(slots=True)
class Pass:
    """One round over all clusters that have waiting jobs."""

    rooms: dict[str, Room] = field(default_factory=dict)
    given: dict[int, dict[str, int]] = field(default_factory=dict)
    """Per cluster id: how many jobs go to each CE."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Who the clusters belong to, and how many jobs each owner has at CEs."""

    owners: Mapping[int, str]
    used: Mapping[str, int]


def draw(found: Sequence[Candidate], chance: Random) -> list[Candidate]:
    """The candidates in an order drawn by lot, a better rank more often in front (FuzzyRank of the gLite WMS)."""
    known = [item.rank for item in found if item.rank > UNKNOWN_RANK]
    lowest, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)

    def key(item: Candidate) -> float:
        share = (item.rank - lowest) / span if span and item.rank > UNKNOWN_RANK else 0.0
        return chance.random() ** (1 / (LEAST_CHANCE + share))

    order = sorted(found, key=key, reverse=True)
    return [Candidate(item.ce, -float(place)) for place, item in enumerate(order)]


def _place(
    wanted: int, found: Sequence[Candidate], rooms: dict[str, Room], own_rank: bool, chance: Random | None
) -> dict[str, int]:
    if chance is None:
        return distribute(wanted, found, rooms, own_rank)
    given: dict[str, int] = {}
    part = max(1, wanted // MAX_DRAWS)
    for start in range(0, wanted, part):
        for ce, count in distribute(min(part, wanted - start), draw(found, chance), rooms, True).items():
            given[ce] = given.get(ce, 0) + count
    return given


def match_pass(
    waiting: Mapping[int, int],
    found: Mapping[int, Sequence[Candidate]],
    own_rank: frozenset[int] | set[int],
    rooms: dict[str, Room],
    fuzzy: Mapping[int, Random] | None = None,
    shares: Shares | None = None,
) -> Pass:
    """Share out the room of the CEs over the waiting jobs (cluster id: how many).

    ``found`` has each cluster's candidates, ``own_rank`` the clusters with a Rank of the user's own, ``fuzzy`` those
    whose CEs are drawn, and with what. Owners take turns, who has least at CEs first: each gets its fair part of the
    room, its clusters fair parts of that; what is left is shared out again, and in the last round as it comes. So
    neither ten thousand jobs nor ten thousand kinds of jobs of one user hold up another's one.
    """
    outcome = Pass(rooms)
    left = {key: count for key, count in waiting.items() if count > 0}
    available = sum(room.free + room.queue for room in rooms.values())
    for last in (False, False, False, True):
        groups = _groups(left, shares)
        if not groups or available <= 0:
            break
        fair = available if last else max(1, available // len(groups))
        for keys in groups:
            budget = min(fair, available)
            part = max(1, budget // len(keys))
            for key, most in [*((key, part) for key in keys), *((key, budget) for key in keys)]:
                if budget <= 0:
                    break
                if key not in left:
                    continue
                wanted = min(left[key], most, budget)
                given = _place(wanted, found[key], rooms, key in own_rank, fuzzy.get(key) if fuzzy else None)
                mine = outcome.given.setdefault(key, {}) if given else {}
                for ce, count in given.items():
                    mine[ce] = mine.get(ce, 0) + count
                    left[key] -= count
                    budget -= count
                    available -= count
                if left[key] <= 0:
                    del left[key]
    return outcome


def _groups(left: Mapping[int, int], shares: Shares | None) -> list[list[int]]:
    """Clusters by owner, who has least at CEs first; without `shares` each cluster by itself."""
    if shares is None:
        return [[key] for key in left]
    by_owner: dict[str, list[int]] = {}
    for key in left:
        by_owner.setdefault(shares.owners[key], []).append(key)
    return [by_owner[owner] for owner in sorted(by_owner, key=lambda owner: shares.used.get(owner, 0))]
