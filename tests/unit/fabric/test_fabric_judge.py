"""Bans as an agent's judge knows them: its own list, the grid's as it was told, and the copy of that on disk."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fabric.authorisation import MAP_AT_ONCE_BYTES, Judge
from fabric.errors import GridError
from fabric.logs import null_logger
from fabric.vos import Vos
from security.bans import BanList
from security.mapfile import GridMapFile
from security.testing import TestGrid
from security.validation import Identity, ValidationPolicy, validate_client_chain
from security.vos import VoList


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory):
    made = TestGrid(tmp_path_factory.mktemp("grid"))
    yield made
    made.close()


@pytest.fixture
def mallory(grid: TestGrid) -> Identity:
    return validate_client_chain(grid.user("mallory").pem_chain(), grid.trust, ValidationPolicy(), grid.now)


@pytest.fixture
def judge(grid: TestGrid, tmp_path: Path) -> Judge:
    (tmp_path / "bans").touch()
    return Judge(
        organisation="/C=XX/O=TestGrid", authority=grid.ca.subject, log=null_logger(),
        map_file=tmp_path / "map", ban_file=tmp_path / "bans",
        vos=Vos(VoList(()), tmp_path / "vos.json", "CERN", null_logger()),
        central_bans=tmp_path / "central-bans", site="CERN",
    )  # fmt: skip


def refusal(judge: Judge, who: Identity) -> str:
    try:
        judge.judge(who, unmapped=True)
    except GridError as error:
        return error.reason
    return ""


def test_what_is_heard_is_in_force_before_it_is_on_disk(judge: Judge, mallory: Identity, tmp_path: Path) -> None:
    heard = BanList.parse(f"{mallory.subject}\n")
    before = judge.generation
    assert judge.hear_bans(heard) and refusal(judge, mallory) == "BANNED"
    assert judge.generation == before + 1 and not judge.hear_bans(heard)
    heard.write(tmp_path / "central-bans")
    assert not judge.refresh() and judge.generation == before + 1  # the copy says nothing new
    assert judge.hear_bans(BanList()) and refusal(judge, mallory) == ""


def test_a_list_that_is_heard_does_not_lift_the_sites_own(judge: Judge, mallory: Identity, tmp_path: Path) -> None:
    (tmp_path / "bans").write_text(f"{mallory.subject}\n")
    assert judge.refresh() and refusal(judge, mallory) == "BANNED"
    assert not judge.hear_bans(BanList()) and refusal(judge, mallory) == "BANNED"


def test_what_could_not_be_kept_survives_a_change_of_the_sites_own(
    judge: Judge, mallory: Identity, tmp_path: Path
) -> None:
    BanList().write(tmp_path / "central-bans")
    judge.refresh()
    judge.hear_bans(BanList.parse(f"{mallory.subject}\n"))
    (tmp_path / "bans").write_text("/C=XX/O=TestGrid/CN=somebody else\n")
    assert judge.refresh() and refusal(judge, mallory) == "BANNED"


@pytest.mark.parametrize("damaged", ["bans", "central-bans"])
def test_while_a_list_cannot_be_read_nothing_heard_lets_anybody_in(
    judge: Judge, mallory: Identity, tmp_path: Path, damaged: str
) -> None:
    (tmp_path / damaged).write_text("no ban at all\n")
    assert judge.refresh() and refusal(judge, mallory) == "BAN_LIST_UNREADABLE"
    assert not judge.hear_bans(BanList.parse("/C=XX/O=TestGrid/CN=somebody else\n"))
    assert refusal(judge, mallory) == "BAN_LIST_UNREADABLE"
    (tmp_path / damaged).write_text(f"{mallory.subject}\n")
    assert judge.refresh() and refusal(judge, mallory) == "BANNED"


async def test_a_map_of_many_people_is_read_beside_the_event_loop(
    judge: Judge, mallory: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    load = GridMapFile.load

    def noted(path: Path) -> GridMapFile:
        threads.append(threading.current_thread())
        return load(path)

    monkeypatch.setattr(GridMapFile, "load", noted)
    (tmp_path / "map").write_text(f'"{mallory.subject}" .cms\n')
    before = judge.generation
    assert await judge.look() and judge.generation == before + 1 and not await judge.look()
    many = "".join(f'"/C=XX/O=TestGrid/CN={number}" .cms\n' for number in range(MAP_AT_ONCE_BYTES // 30))
    (tmp_path / "map").write_text(many)
    assert await judge.look() and judge.generation == before + 2 and not await judge.look()
    assert [thread is threading.main_thread() for thread in threads] == [True, False]
    assert not judge.map_file.accounts_of(mallory.subject)
    (tmp_path / "map").write_bytes(b"\xff" * 2 * MAP_AT_ONCE_BYTES)
    assert not await judge.look()  # the map in force stays
    assert judge.map_file.entries
