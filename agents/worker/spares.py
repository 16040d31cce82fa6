"""Directories of ended jobs, kept a while for the next jobs of the same owner and account.

Making an i-node costs a file system more than all else about a short job: ext4 looks again at each one that was given
back during the last five seconds, so the dearer the more jobs end. A spare directory has nothing of its last job left
in it but two empty files, and is the worker's own meanwhile: a process that got away can put nothing into it. It may
hold those two files open, so these are judged by descriptor before they are written. Blocking; use from threads.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from agents.worker import scratch

MAX_SPARES = 512
KEPT_S = 30.0
"""A spare directory that nobody needed for so long goes."""
KEPT_FILES = frozenset({scratch.PROXY_NAME, scratch.BROKER_INFO_NAME})
"""Every job has these."""
MAX_DIRECTORY_BYTES = 4096
"""One that had to grow for a job's many files stays large for ever."""
_OPEN = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Spares:
    """Those of one worker, in `.spares` of its scratch space, where no account of a job can walk to."""

    def __init__(self, root: Path, most: int = MAX_SPARES) -> None:
        self._root, self._most = root, most
        self._folder = root / ".spares"
        self._numbers = itertools.count()
        self._kept: deque[tuple[tuple[str, int, int], str, float]] = deque()
        """Whose (owner, uid, gid), name and since when, oldest first."""

    def open(self) -> None:
        """At start: those of an earlier life go."""
        self.close()
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        """At the end."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def create(
        self, key: str, *, owner: str, uid: int, gid: int, files: Mapping[str, bytes], inputs: Sequence[scratch.Input]
    ) -> None:
        """A job's directory, as `scratch.create`."""
        name = self._take((owner, uid, gid))
        if name is not None:
            try:
                self._renew(name, uid, gid, files)
            except OSError:
                scratch.remove(self._folder, name)
            else:
                scratch.remove(self._root, key)
                os.rename(self._folder / name, self._root / key)
                scratch.fill(self._root, key, {}, inputs, uid=uid, gid=gid)
                return
        scratch.create(self._root, key, uid=uid, gid=gid, files=files, inputs=inputs)

    def keep(self, key: str, *, owner: str, uid: int, gid: int) -> None:
        """A job's directory is needed no more: after this it is a spare one, or gone."""
        if len(self._kept) >= self._most:
            scratch.remove(self._root, key)
            return
        name = str(next(self._numbers))
        try:
            os.rename(self._root / key, self._folder / name)
        except FileNotFoundError:
            return
        except OSError:
            scratch.remove(self._root, key)
            return
        if self._is_clean(name, uid):
            self._kept.append(((owner, uid, gid), name, time.monotonic()))
        else:
            scratch.remove(self._folder, name)

    def drop_old(self) -> None:
        """Those that nobody needed."""
        before = time.monotonic() - KEPT_S
        with contextlib.suppress(IndexError):
            while self._kept[0][2] < before:
                scratch.remove(self._folder, self._kept.popleft()[1])

    def _take(self, whose: tuple[str, int, int]) -> str | None:
        for kept in reversed(list(self._kept)):
            if kept[0] == whose:
                with contextlib.suppress(ValueError):  # another thread has it
                    self._kept.remove(kept)
                    return kept[1]
        return None

    def _renew(self, name: str, uid: int, gid: int, files: Mapping[str, bytes]) -> None:
        directory = os.open(self._folder / name, scratch.DIRECTORY)
        try:
            for file, data in files.items():
                try:
                    descriptor = os.open(file, _OPEN, dir_fd=directory)
                except FileNotFoundError:
                    scratch.put_file(file, data, uid=uid, gid=gid, directory=directory)
                    continue
                try:
                    if not _is_plain(descriptor, uid, stat.S_IFREG):
                        raise PermissionError(file)
                    os.fchmod(descriptor, 0o600)
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, data)
                finally:
                    os.close(descriptor)
        finally:
            os.close(directory)

    def _is_clean(self, name: str, uid: int) -> bool:
        """Empties it; False if something is not as it was made, or to make a new one is less work."""
        try:
            directory = os.open(self._folder / name, scratch.DIRECTORY)
        except OSError:
            return False
        try:
            if not _is_plain(directory, uid, stat.S_IFDIR):
                return False
            if uid > 0:
                os.fchown(directory, os.geteuid(), os.getegid())
            os.fchmod(directory, 0o700)
            for file in os.listdir(directory):
                if file not in KEPT_FILES or not _emptied(file, directory, uid):
                    os.unlink(file, dir_fd=directory)
        except OSError:  # folders
            return False
        finally:
            os.close(directory)
        return True


def _emptied(file: str, directory: int, uid: int) -> bool:
    try:
        descriptor = os.open(file, _OPEN, dir_fd=directory)
    except OSError:
        return False
    try:
        if not _is_plain(descriptor, uid, stat.S_IFREG):
            return False
        os.ftruncate(descriptor, 0)
        return True
    finally:
        os.close(descriptor)


def _is_plain(descriptor: int, uid: int, kind: int) -> bool:
    """Of this kind and account, known by one name only, small, without access lists or attributes of its own."""
    status = os.fstat(descriptor)
    if stat.S_IFMT(status.st_mode) != kind or status.st_uid != (uid if uid > 0 else os.geteuid()):
        return False
    if kind == stat.S_IFREG and status.st_nlink != 1:
        return False
    if kind == stat.S_IFDIR and status.st_size > MAX_DIRECTORY_BYTES:
        return False
    try:
        return not any(name.startswith(("user.", "system.")) for name in os.listxattr(descriptor))
    except OSError:  # this file system has none
        return True
