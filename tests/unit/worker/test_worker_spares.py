"""Directories that jobs of one owner use one after another: nothing of a job reaches the next one, or another owner."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.worker import scratch, spares
from agents.worker.spares import Spares

FILES = {".x509_proxy": b"proxy", ".BrokerInfo": b"info"}
OWN = -1
AS_ROOT = os.geteuid() == 0


@pytest.fixture
def kept(tmp_path: Path) -> Spares:
    found = Spares(tmp_path)
    found.open()
    return found


def create(kept: Spares, key: str, owner: str = "ada", uid: int = OWN, **more: bytes) -> None:
    kept.create(key, owner=owner, uid=uid, gid=uid, files={**FILES, **more}, inputs=[])


def keep(kept: Spares, key: str, owner: str = "ada", uid: int = OWN) -> None:
    kept.keep(key, owner=owner, uid=uid, gid=uid)


def inodes(path: Path) -> list[int]:
    return [os.stat(path).st_ino, *(os.stat(path / name).st_ino for name in sorted(FILES))]


def test_the_next_job_of_the_owner_gets_the_directory_without_anything_of_the_last_one(
    kept: Spares, tmp_path: Path
) -> None:
    create(kept, "first", machines=b"x")
    (tmp_path / "first/out").write_text("output")
    os.chmod(tmp_path / "first", 0o777)
    os.chmod(tmp_path / "first/.BrokerInfo", 0o666)
    (tmp_path / "first/.BrokerInfo").write_bytes(b"lies")
    (tmp_path / "first/.x509_proxy").write_bytes(b"longer than the proxy was")
    before = inodes(tmp_path / "first")
    keep(kept, "first")
    assert os.listdir(tmp_path) == [".spares"]
    assert [file.stat().st_size for file in tmp_path.glob(".spares/*/.x509*")] == [0]  # no proxy outlives its job
    assert os.stat(tmp_path / ".spares").st_mode & 0o777 == 0o700
    source = tmp_path / "source"
    source.write_text("input")
    inputs = [scratch.Input("data", source, False)]
    kept.create("second", owner="ada", uid=OWN, gid=OWN, files={**FILES, "more": b"m"}, inputs=inputs)
    path = tmp_path / "second"
    assert inodes(path) == before
    assert {name: (path / name).read_bytes() for name in os.listdir(path)} == {**FILES, "more": b"m", "data": b"input"}
    assert {os.stat(path / name).st_mode & 0o777 for name in os.listdir(path)} == {0o600}
    assert os.stat(path).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("owner", ["eve", ""])
def test_another_owner_gets_a_new_one(kept: Spares, tmp_path: Path, owner: str) -> None:
    create(kept, "first")
    keep(kept, "first")
    create(kept, "second", owner)
    assert len(os.listdir(tmp_path / ".spares")) == 1


def _becomes_link(path: Path, outside: Path) -> None:
    os.unlink(path / ".x509_proxy")
    os.symlink(outside, path / ".x509_proxy")


def _becomes_other_name(path: Path, outside: Path) -> None:
    os.unlink(path / ".x509_proxy")
    os.link(outside, path / ".x509_proxy")


def _becomes_fifo(path: Path, outside: Path) -> None:
    os.unlink(path / ".BrokerInfo")
    os.mkfifo(path / ".BrokerInfo")


def _becomes_folder(path: Path, outside: Path) -> None:
    os.unlink(path / ".x509_proxy")
    (path / ".x509_proxy").mkdir()
    os.symlink(outside, path / ".x509_proxy/link")


def _has_folders(path: Path, outside: Path) -> None:
    (path / "closed/deep").mkdir(parents=True)
    os.chmod(path / "closed", 0)
    os.symlink(outside.parent, path / "all")


def _grew(path: Path, outside: Path) -> None:
    for number in range(400):
        (path / f"a-long-name-of-an-output-file-{number}").touch()


def _took_room(path: Path, outside: Path) -> None:
    (path / ".BrokerInfo").write_bytes(bytes(100_000))


def _took_room_behind_the_end(path: Path, outside: Path) -> None:
    for name in FILES:
        (path / name).write_bytes(bytes(100_000))
        os.truncate(path / name, 0)


def _has_attributes(path: Path, outside: Path) -> None:
    with contextlib.suppress(OSError):  # not on this file system
        os.setxattr(path, "user.mine", b"x")


def _file_has_attributes(path: Path, outside: Path) -> None:
    with contextlib.suppress(OSError):
        os.setxattr(path / ".x509_proxy", "user.mine", b"x")


def _is_gone(path: Path, outside: Path) -> None:
    for name in FILES:
        os.unlink(path / name)
    os.rmdir(path)


def _is_link(path: Path, outside: Path) -> None:
    _is_gone(path, outside)
    os.symlink(outside.parent, path)


@pytest.mark.parametrize(
    "spoil",
    [
        _becomes_link, _becomes_other_name, _becomes_fifo, _becomes_folder, _has_folders, _grew, _took_room,
        _took_room_behind_the_end, _has_attributes,
        _file_has_attributes, _is_gone, _is_link,
    ],
)  # fmt: skip
def test_what_a_payload_made_of_it_touches_neither_the_next_job_nor_anything_outside(
    kept: Spares, tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    outside = tmp_path / "outside/secret"
    outside.parent.mkdir()
    outside.write_text("secret")
    create(kept, "first")
    spoil(tmp_path / "first", outside)
    keep(kept, "first")
    create(kept, "second")
    path = tmp_path / "second"
    assert {name: (path / name).read_bytes() for name in os.listdir(path)} == FILES
    assert all((path / name).stat().st_nlink == 1 and not (path / name).is_symlink() for name in FILES)
    assert not any(name.startswith("user.") for name in os.listxattr(path))
    assert outside.read_text() == "secret"
    assert not (tmp_path / "first").exists()


def test_who_still_holds_a_file_of_a_spare_directory_does_not_get_the_next_proxy(kept: Spares, tmp_path: Path) -> None:
    create(kept, "first")
    with open(tmp_path / "first/.x509_proxy", "rb") as held:
        keep(kept, "first")
        os.link(next(tmp_path.glob(".spares/*/.x509_proxy")), tmp_path / "mine")  # as linkat does with a descriptor
        create(kept, "second")
        assert held.read() == b""
    assert (tmp_path / "mine").read_bytes() == b""
    assert (tmp_path / "second/.x509_proxy").read_bytes() == b"proxy"


@pytest.mark.skipif(not AS_ROOT, reason="another account needs root")
def test_a_spare_directory_is_not_its_accounts(kept: Spares, tmp_path: Path) -> None:
    create(kept, "first", uid=61001)
    keep(kept, "first", uid=61001)
    (spare,) = (tmp_path / ".spares").iterdir()
    assert (os.stat(spare).st_uid, os.stat(spare).st_gid) == (0, os.getegid())
    create(kept, "other", uid=61002)
    assert spare.exists()
    create(kept, "second", uid=61001)
    assert not spare.exists()
    assert {os.stat(tmp_path / "second" / name).st_uid for name in (".", *FILES)} == {61001}
    os.chown(tmp_path / "other", 61003, 61003)
    keep(kept, "other", uid=61002)
    assert os.listdir(tmp_path / ".spares") == []


def test_a_directory_of_this_key_is_replaced(kept: Spares, tmp_path: Path) -> None:
    create(kept, "first")
    keep(kept, "first")
    (tmp_path / "second/sub").mkdir(parents=True)
    create(kept, "second")
    assert sorted(os.listdir(tmp_path / "second")) == sorted(FILES)


def test_they_are_bounded_and_go_when_nobody_needs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Spares(tmp_path, most=2)
    kept.open()
    for key in ("a", "b", "c"):
        create(kept, key)
    for key in ("a", "b", "c"):
        keep(kept, key)
    assert os.listdir(tmp_path) == [".spares"]
    assert len(os.listdir(tmp_path / ".spares")) == 2
    kept.drop_old()
    assert len(os.listdir(tmp_path / ".spares")) == 2
    monkeypatch.setattr(spares, "KEPT_S", -1.0)
    kept.drop_old()
    assert os.listdir(tmp_path / ".spares") == []
    create(kept, "d")
    keep(kept, "d")
    Spares(tmp_path).open()
    assert os.listdir(tmp_path / ".spares") == []
    create(kept, "e")  # although those that it knew are gone
    assert sorted(os.listdir(tmp_path / "e")) == sorted(FILES)
