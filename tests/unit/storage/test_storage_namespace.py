"""Names: what is bound in the transaction that makes a file, and how names move."""

from __future__ import annotations

import os
from typing import Any

import pytest

from fabric.errors import AlreadyExists, Conflict, GridError, InvalidRequest, NotFound

from .conftest import Bench

DATA = bytes(range(256)) * 20


async def refused(kind: type[GridError], reason: str, awaitable: Any) -> None:
    with pytest.raises(kind) as caught:
        await awaitable
    assert caught.value.reason == reason, caught.value


def kept(bench: Bench) -> list[str]:
    return [path for path in bench.on_disk() if path.startswith("data/")]


async def names(element: Any, *path: str) -> list[str]:
    return [entry.name for entry in await element.entries("cms", path, "", 100)]


async def test_a_file_takes_its_name_and_gives_it_up_in_one_step(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    first = await upload(element, DATA, "p1", path=("a",))
    assert (await element.find("cms", ("a",))).file == first
    await refused(Conflict, "NAME_TAKEN", upload(element, DATA, "p2", path=("a",)))
    second = await upload(element, DATA[:5000], "p3", path=("a",), replaces=first.file_id)
    assert (await element.find("cms", ("a",))).file == second
    await refused(NotFound, "FILE_NOT_FOUND", element.get(first.file_id, "cms"))
    assert kept(bench) == [f"data/{second.file_id[:2]}/{second.file_id[2:4]}/{second.file_id}"]
    (use, _), *_ = (await element.space()).vos
    assert (use.files, use.used_bytes, use.reserved_bytes) == (1, 5000, 0)
    await element.remove(second.file_id, "cms", lambda file: None)
    await refused(NotFound, "NAME_NOT_FOUND", element.find("cms", ("a",)))


async def test_who_lost_the_race_for_a_name_leaves_nothing(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    await refused(Conflict, "PARENT_MISSING", upload(element, DATA, path=("no", "a")))
    await refused(Conflict, "NAME_TAKEN", upload(element, DATA, path=("a",), replaces="0" * 32))
    assert kept(bench) == [] and (await element.space()).vos[0][0].reserved_bytes == 0
    assert await element.page("cms", "", 10) == []


async def test_names_and_files_outlive_a_restart(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    await element.make_directory("cms", ("d",))
    file = await upload(element, DATA, path=("d", "a"))
    await bench.stop()
    element = await bench.start()
    assert (await element.find("cms", ("d", "a"))).file == file


async def test_directories(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    assert (await element.find("cms", ())).file is None and await names(element) == []
    await element.make_directory("cms", ("d",))
    await element.make_directory("cms", ("d", "e"))
    await refused(AlreadyExists, "NAME_EXISTS", element.make_directory("cms", ("d",)))
    await refused(AlreadyExists, "NAME_EXISTS", element.make_directory("cms", ()))
    await refused(Conflict, "PARENT_MISSING", element.make_directory("cms", ("x", "y")))
    await refused(AlreadyExists, "NAME_EXISTS", upload(element, DATA, path=("d",)))
    await upload(element, DATA, path=("d", "f"))
    await refused(Conflict, "PARENT_MISSING", element.make_directory("cms", ("d", "f", "g")))
    await refused(Conflict, "DIRECTORY_NOT_EMPTY", element.remove_directory("cms", ("d",)))
    await refused(NotFound, "NAME_NOT_FOUND", element.remove_directory("cms", ("d", "f")))
    await refused(NotFound, "NAME_NOT_FOUND", element.remove_directory("cms", ()))
    await refused(NotFound, "NAME_NOT_FOUND", element.find("atlas", ("d",)))
    await element.remove_directory("cms", ("d", "e"))
    assert (await names(element), await names(element, "d")) == (["d"], ["f"])


async def test_moving_a_directory_takes_everything_along_and_moves_no_byte(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    for path in [("d",), ("d", "e"), ("t",)]:
        await element.make_directory("cms", path)
    file = await upload(element, DATA, "p1", path=("d", "e", "a"))
    before = kept(bench)
    await element.rename("cms", ("d",), ("t", "moved"))
    assert (await element.find("cms", ("t", "moved", "e", "a"))).file == file
    assert (await names(element), kept(bench)) == (["t"], before)
    await refused(Conflict, "MOVE_INTO_ITSELF", element.rename("cms", ("t",), ("t", "moved", "x")))
    await refused(Conflict, "MOVE_INTO_ITSELF", element.rename("cms", ("t",), ("t",)))
    await refused(NotFound, "NAME_NOT_FOUND", element.rename("cms", ("no",), ("x",)))
    await refused(NotFound, "NAME_NOT_FOUND", element.rename("cms", (), ("x",)))
    await refused(Conflict, "PARENT_MISSING", element.rename("cms", ("t",), ("no", "t")))
    assert (await element.find("cms", ("t", "moved", "e", "a"))).file == file
    other = await upload(element, DATA, "p2", path=("b",))
    await refused(Conflict, "NAME_TAKEN", element.rename("cms", ("t", "moved", "e", "a"), ("b",)))
    await element.rename("cms", ("t", "moved", "e", "a"), ("b",), other.file_id)
    assert (await element.find("cms", ("b",))).file == file and await names(element, "t", "moved", "e") == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0", "a\n", "ä" * 128, "\u202e", "\ud800"])
async def test_names_that_cannot_be(bench: Bench, upload: Any, name: str) -> None:
    element = await bench.start()
    await refused(InvalidRequest, "NAME_INVALID", upload(element, DATA, path=(name,)))
    await refused(InvalidRequest, "NAME_INVALID", element.make_directory("cms", (name,)))


async def test_a_name_that_could_be_an_id_is_reserved(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    await refused(InvalidRequest, "NAME_RESERVED", upload(element, DATA, path=(os.urandom(16).hex(),)))
    await element.make_directory("cms", ("d",))
    await upload(element, DATA, path=("d", os.urandom(16).hex()))


async def test_a_directory_is_listed_page_by_page(bench: Bench, upload: Any) -> None:
    element = await bench.start()
    for number in range(7):
        await upload(element, b"x", f"p{number}", path=(f"{number}",))
    first = await element.entries("cms", (), "", 4)
    rest = await element.entries("cms", (), first[-1].name, 4)
    assert [entry.name for entry in [*first, *rest]] == list("0123456")
