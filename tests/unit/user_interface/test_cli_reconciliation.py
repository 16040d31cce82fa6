"""Catalogue and storage element compared while files come and go: what differs is found, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.storage import comparison
from agents.storage.client import Checksums, FileInfo
from agents.storage.comparison import differences
from fabric.errors import Unavailable

OLD, NOW = 1, 10
AT = "srm://se:1/cms/"


class Busy:
    """Both ends in memory; every question gives whoever puts and removes files a chance to do some steps."""

    def __init__(self, rng: random.Random, page: int) -> None:
        self._rng, self._page = rng, page
        self.there: dict[str, FileInfo] = {}
        self.named: set[str] = set()
        self._under_way: list[Callable[[], object]] = []

    def surl(self) -> str:
        return f"{AT}{self._rng.getrandbits(128):032x}"

    def store(self, surl: str, created_at_us: int, *, has_name: bool = False) -> None:
        self.there[surl] = FileInfo(
            surl, "cms", 1, Checksums("0" * 8, "0" * 64), created_at_us, "ann", "", named=has_name
        )

    def live(self) -> None:
        for _ in range(self._rng.randrange(4)):
            if self._under_way and self._rng.random() < 0.6:
                self._under_way.pop(self._rng.randrange(len(self._under_way)))()
            elif self._rng.random() < 0.5:
                surl = self.surl()
                # an old file that gets a name only now looks like a dark one for a while
                self.store(surl, self._rng.choice([OLD, NOW + 1]))
                self._under_way.append(partial(self.named.add, surl))
            elif both := sorted(self.there.keys() & self.named):
                gone = self._rng.choice(both)
                del self.there[gone]
                self._under_way.append(partial(self.named.discard, gone))

    async def settle(self) -> None:
        while self._under_way:
            self._under_way.pop()()

    async def stored(self, token: str) -> tuple[list[FileInfo], str]:
        self.live()
        page = sorted(surl for surl in self.there if surl > token)[: self._page]
        return [self.there[surl] for surl in page], page[-1] if len(page) == self._page else ""

    async def listed(self, after: str) -> tuple[list[str], bool]:
        self.live()
        page = sorted(surl for surl in self.named if surl > after)[: self._page + 1]
        return page, len(page) == self._page + 1

    async def still_stored(self, surls: Sequence[str]) -> set[str]:
        return set(surls) & self.there.keys()

    async def still_listed(self, surls: Sequence[str]) -> set[str]:
        return set(surls) & self.named


async def audit(ends: Busy) -> tuple[set[str], set[str]]:
    """(dark, lost)"""
    found = [each async for batch in differences(ends, NOW, ends.settle) for each in batch]
    surls = [each.surl for each in found]
    assert len(surls) == len(set(surls)), "each is told once"
    return {d.surl for d in found if d.file is not None}, {d.surl for d in found if d.file is None}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(), page=st.integers(1, 7), held=st.sampled_from([1, 3, 5000]))
async def test_what_differs_is_found_while_files_come_and_go_and_nothing_else(seed: int, page: int, held: int) -> None:
    rng = random.Random(seed)
    ends = Busy(rng, page)
    dark, lost = set[str](), set[str]()
    for _ in range(rng.randrange(25)):
        surl = ends.surl()
        what = rng.choice(["both", "dark", "lost", "young", "own name"])
        if what in ("both", "lost"):
            ends.named.add(surl)
        if what != "lost":
            ends.store(surl, NOW + 1 if what == "young" else OLD, has_name=what == "own name")
        dark |= {surl} if what == "dark" else set()
        lost |= {surl} if what == "lost" else set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "MAX_SUSPECTS", held)
        assert await audit(ends) == (dark, lost)


async def test_silence_of_one_end_ends_the_audit_and_proves_nothing() -> None:
    ends = Busy(random.Random(1), 2)
    for _ in range(5):
        ends.named.add(ends.surl())

    async def away(surls: Sequence[str]) -> set[str]:
        raise Unavailable("SERVER_UNREACHABLE", "the storage element cannot be reached; try again")

    ends.still_stored = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await audit(ends)


async def test_an_empty_element_has_lost_everything_and_an_empty_catalogue_knows_nothing() -> None:
    ends = Busy(random.Random(2), 3)
    ends.live = lambda: None  # type: ignore[method-assign]
    surls = {ends.surl() for _ in range(20)}
    ends.named = set(surls)
    assert await audit(ends) == (set(), surls)
    ends.named = set()
    for surl in surls:
        ends.store(surl, OLD)
    assert await audit(ends) == (surls, set())
