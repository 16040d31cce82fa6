"""What a storage element has, compared with what the catalogue lists there.

Both are read in order of SURL, page by page, and merged; what differs is a suspect until it was looked at a second
time, a while later, at both ends. So a file that comes or goes meanwhile is no difference: a put stores before it
registers and a removal deletes before it unlists, and neither takes as long as the pause between the looks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

MAX_SUSPECTS = 5000
"""Suspects that are held before they are looked at again: bounds the memory, however much differs."""
SETTLE_S = 10.0
"""From the last suspect to the second look: longer than a put or a removal takes from one end to the other."""


class Kept(Protocol):
    """A file as the storage element has it."""

    @property
    def surl(self) -> str:
        """Its SURL."""
        ...

    @property
    def created_at_us(self) -> int:
        """When it was put."""
        ...

    @property
    def named(self) -> bool:
        """It has a name at the storage element itself, so the catalogue need not know it."""
        ...


F = TypeVar("F", bound=Kept)


@dataclass(frozen=True, slots=True)
class Difference(Generic[F]):
    """A file that only one of the two has."""

    surl: str
    file: F | None
    """Dark: as the storage element has it. None: lost."""

    @property
    def kind(self) -> str:
        """`dark` or `lost`."""
        return "lost" if self.file is None else "dark"


class Ends(Protocol[F]):
    """The two sides of a comparison, of one VO at one storage element."""

    async def stored(self, token: str) -> tuple[list[F], str]:
        """A page of what is there, in order of SURL, and the token of the next one."""
        ...

    async def listed(self, after: str) -> tuple[list[str], bool]:
        """A page of the SURLs that should be there, in order, above `after`; whether there are more."""
        ...

    async def still_stored(self, surls: Sequence[str]) -> set[str]:
        """Those of them that are there now."""
        ...

    async def still_listed(self, surls: Sequence[str]) -> set[str]:
        """Those of them that are listed now."""
        ...


async def differences(
    ends: Ends[F], before_us: int, pause: Callable[[], Awaitable[None]]
) -> AsyncIterator[list[Difference[F]]]:
    """What differs, in batches: dark files made before `before_us`, and lost replicas. `pause` is called between the
    first look at a batch and the second."""
    suspects: list[Difference[F]] = []
    async for difference in _suspects(ends, before_us):
        suspects.append(difference)
        if len(suspects) >= MAX_SUSPECTS:
            await pause()
            yield await _confirmed(ends, suspects)
            suspects = []
    if suspects:
        await pause()
        yield await _confirmed(ends, suspects)


async def _suspects(ends: Ends[F], before_us: int) -> AsyncIterator[Difference[F]]:
    listed, more, above = await _page_of_listed(ends, "")
    token: str | None = ""
    while token is not None:
        files, next_token = await ends.stored(token)
        token = next_token or None
        for file in files:
            while more and (not listed or listed[-1] < file.surl):
                for surl in listed:
                    yield Difference(surl, None)
                listed, more, above = await _page_of_listed(ends, above)
            position = 0
            while position < len(listed) and listed[position] < file.surl:
                yield Difference(listed[position], None)
                position += 1
            is_listed = position < len(listed) and listed[position] == file.surl
            listed = listed[position + is_listed :]
            if not is_listed and not file.named and file.created_at_us < before_us:
                yield Difference(file.surl, file)
    while listed or more:
        for surl in listed:
            yield Difference(surl, None)
        listed, more, above = await _page_of_listed(ends, above) if more else ([], False, above)


async def _page_of_listed(ends: Ends[Any], after: str) -> tuple[list[str], bool, str]:
    """A page, whether there are more, and its last SURL."""
    listed, more = await ends.listed(after)
    return listed, more and bool(listed), listed[-1] if listed else after


async def _confirmed(ends: Ends[F], suspects: Sequence[Difference[F]]) -> list[Difference[F]]:
    surls = [suspect.surl for suspect in suspects]
    stored = await ends.still_stored(surls)
    listed = await ends.still_listed(surls)
    return [s for s in suspects if (s.surl in listed, s.surl in stored) == (s.file is None, s.file is not None)]
