"""Space that is held for files to come: nobody else gets it, a put that fails gives it back, a restart keeps it."""

from __future__ import annotations

from typing import Any

import pytest

from agents.storage.reservations import MAX_OF_OWNER
from fabric.errors import Conflict, DataCorrupted, Exhausted, GridError, InvalidRequest, NotFound

from .conftest import Bench, announced, stream, sums

DATA = bytes(range(250)) * 4
ANN = "/O=EDG/CN=ann"


async def use(element: Any) -> tuple[int, int, int]:
    """(used, reserved, what cms could write)."""
    ((found, available),) = (await element.space(("cms",))).vos
    return found.used_bytes, found.reserved_bytes, available


async def refused(kind: type[GridError], reason: str, awaitable: Any) -> GridError:
    with pytest.raises(kind) as caught:
        await awaitable
    assert caught.value.reason == reason
    return caught.value


async def test_what_is_held_is_for_puts_that_name_it(bench: Bench, upload: Any) -> None:
    element = await bench.start(quota_bytes=5000)
    kept = await element.reservations.reserve("run7", "cms", ANN, 3000, 600)
    assert (kept.size_bytes, await use(element)) == (3000, (0, 3000, 2000))
    for number in range(2):
        await upload(element, DATA, f"free{number}")
    await refused(Exhausted, "QUOTA_EXCEEDED", upload(element, DATA, "no room"))
    for number in range(2):
        await upload(element, DATA, f"held{number}", reservation="run7")
    assert await use(element) == (4000, 1000, 0)
    bad = element.put(announced(DATA, "bad", reservation="run7"), stream(DATA[:-1] + b"x", sums(DATA)))
    await refused(DataCorrupted, "CHECKSUM_MISMATCH", bad)
    await upload(element, DATA, "held1", reservation="run7")  # a repeat: it is there
    assert (await element.reservations.reserve("run7", "cms", ANN, 3000, 600)).size_bytes == 1000
    error = await refused(Exhausted, "RESERVATION_EXCEEDED", upload(element, DATA + b"x", "large", reservation="run7"))
    assert error.facts["available_bytes"] == "1000"
    await element.reservations.release("run7", "cms")
    await element.reservations.release("run7", "cms")
    assert await use(element) == (4000, 0, 1000)
    await refused(NotFound, "RESERVATION_UNKNOWN", upload(element, DATA, "p", reservation="run7"))
    await upload(element, DATA, "free2")


async def test_it_outlives_a_restart_and_ends_with_its_time(bench: Bench, upload: Any) -> None:
    element = await bench.start(quota_bytes=5000)
    await element.reservations.reserve("long", "cms", ANN, 3000, 7200)
    await element.reservations.reserve("short", "cms", ANN, 1000, 60)
    await upload(element, DATA, "p", reservation="long")
    await bench.stop()
    element = await bench.start(quota_bytes=5000)
    assert await use(element) == (1000, 3000, 1000)
    bench.clock.advance(61)
    await refused(NotFound, "RESERVATION_UNKNOWN", upload(element, DATA, "q", reservation="short"))
    await element.reservations.end_expired()
    assert await use(element) == (1000, 2000, 2000)
    await bench.stop()
    element = await bench.start(quota_bytes=1500)  # an operator gave the VO less meanwhile
    assert await use(element) == (1000, 0, 500)


async def test_what_is_no_reservation(bench: Bench) -> None:
    reserve = (await bench.start(quota_bytes=5000)).reservations.reserve
    for name in ("", "a b", "x" * 65, "\n"):
        await refused(InvalidRequest, "RESERVATION_INVALID", reserve(name, "cms", ANN, 1, 60))
    for size_bytes, lifetime_s in ((0, 60), (-1, 60), (1, 0), (1, 1e9), (1, float("nan"))):
        await refused(InvalidRequest, "RESERVATION_INVALID", reserve("a", "cms", ANN, size_bytes, lifetime_s))
    await refused(Exhausted, "QUOTA_EXCEEDED", reserve("a", "cms", ANN, 5001, 60))
    await reserve("a", "cms", ANN, 10, 60)
    for vo, owner in (("atlas", ANN), ("cms", "/O=EDG/CN=bob")):
        await refused(Conflict, "RESERVATION_TAKEN", reserve("a", vo, owner, 10, 60))
    for number in range(MAX_OF_OWNER - 1):
        await reserve(f"b{number}", "cms", ANN, 10, 60)
    await refused(Exhausted, "TOO_MANY_RESERVATIONS", reserve("c", "cms", ANN, 10, 60))
