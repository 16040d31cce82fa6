"""Directories of ended jobs, kept a while for the next jobs of the same owner and account.

Making an i-node costs a file system more than all else about a short job: ext4 looks again at each one that was given
back during the last five seconds, so the dearer the more jobs end. A spare directory has nothing of its last job left
in it but the two files that every job has, the proxy emptied, and is the worker's own meanwhile: a process that got
away can put nothing into it. It may hold those two files open, so these are judged by descriptor before they are
written. Blocking; use from threads.
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
MAX_DIRECTORY_BYTES = 4096
"""One that had to grow for a job's many files stays large for ever."""
MAX_FILE_BYTES = 64 * 1024
"""On the disk; a file that a payload made larger goes."""
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Spares:
    """Those of one worker, in `.spares` of its scratch space, where no account of a job can walk to."""

    def __init__(self, root: Path, most: int = MAX_SPARES) -> None:
        self._root, self._most = root, most
        self._folder = root / ".spares"
        self._job, self._spare = f"{root}/", f"{self._folder}/"
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
                if os.path.lexists(self._job + key):
                    scratch.remove(self._root, key)
                os.rename(self._spare + name, self._job + key)
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
            os.rename(self._job + key, self._spare + name)
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
        directory = os.open(self._spare + name, scratch.DIRECTORY)
        try:
            for file, data in files.items():
                try:
                    descriptor = os.open(file, _OPEN, dir_fd=directory)
                except FileNotFoundError:
                    scratch.put_file(file, data, uid=uid, gid=gid, directory=directory)
                    continue
                try:
                    if (size := _plain_file(descriptor, uid)) is None:
                        raise PermissionError(file)
                    if size != len(data) or os.read(descriptor, size) != data:
                        if size:
                            os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, data, 0)
                finally:
                    os.close(descriptor)
        finally:
            os.close(directory)

    def _is_clean(self, name: str, uid: int) -> bool:
        """Empties it; False if something is not as it was made, or to make a new one is less work."""
        try:
            directory = os.open(self._spare + name, scratch.DIRECTORY)
        except OSError:
            return False
        try:
            status = os.fstat(directory)
            if status.st_size > MAX_DIRECTORY_BYTES or not _is_own(directory, status, uid, stat.S_IFDIR):
                return False
            if uid > 0:
                os.fchown(directory, os.geteuid(), os.getegid())
            if stat.S_IMODE(status.st_mode) != 0o700:
                os.fchmod(directory, 0o700)
            for file in os.listdir(directory):
                if not _may_stay(file, directory, uid):
                    os.unlink(file, dir_fd=directory)
        except OSError:  # folders
            return False
        finally:
            os.close(directory)
        return True


def _may_stay(file: str, directory: int, uid: int) -> bool:
    if file == scratch.BROKER_INFO_NAME:
        return not _is_large(os.stat(file, dir_fd=directory, follow_symlinks=False))
    return file == scratch.PROXY_NAME and _emptied(file, directory, uid)


def _emptied(file: str, directory: int, uid: int) -> bool:
    try:
        descriptor = os.open(file, _OPEN, dir_fd=directory)
    except OSError:
        return False
    try:
        if _plain_file(descriptor, uid) is None:
            return False
        os.ftruncate(descriptor, 0)
        return True
    finally:
        os.close(descriptor)


def _plain_file(descriptor: int, uid: int) -> int | None:
    """The size of a file of this account, known by one name only, which now has mode 0600; None for anything else."""
    status = os.fstat(descriptor)
    if status.st_nlink != 1 or _is_large(status) or not _is_own(descriptor, status, uid, stat.S_IFREG):
        return None
    if stat.S_IMODE(status.st_mode) != 0o600:
        os.fchmod(descriptor, 0o600)
    return status.st_size


def _is_large(status: os.stat_result) -> bool:
    return status.st_blocks * 512 > MAX_FILE_BYTES


def _is_own(descriptor: int, status: os.stat_result, uid: int, kind: int) -> bool:
    """Of this kind and account, without access lists or attributes of its own."""
    if stat.S_IFMT(status.st_mode) != kind or status.st_uid != (uid if uid > 0 else os.geteuid()):
        return False
    try:
        names = os.listxattr(descriptor)
    except OSError:  # this file system has none
        return True
    return not any(name.startswith(("user.", "system.")) for name in names)
