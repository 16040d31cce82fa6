"""Scratch directories: made before a job, read after it, removed with everything in it. Blocking; use from threads.

After the payload has run, its directory is hostile: it may hold symbolic links to anything, names of any length,
folders
without permissions. So it is read only through descriptors that follow no link, and only plain files of the job's own
account count as output.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROXY_NAME = ".x509_proxy"
BROKER_INFO_NAME = ".BrokerInfo"
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class OutputError(Exception):
    """An output file that cannot be taken; says which and why."""


@dataclass(frozen=True)
class Input:
    """One file to put into the directory."""

    name: str
    source: Path
    executable: bool


def reachable(path: Path) -> bool:
    """May another account walk to this directory?"""
    try:
        return all(os.stat(part).st_mode & stat.S_IXOTH for part in (path, *path.parents))
    except OSError:
        return False


def choose_root(configured: str, state_dir: Path, *, for_others: bool) -> Path:
    """Where the directories go; see the option `scratch_dir`. One outside the state has a link there: for `--purge`."""
    if configured:
        return Path(configured)
    usual = state_dir / "scratch"
    if usual.is_symlink():
        usual.unlink()
    if for_others:
        # Accounts of users must be able to walk through; files in there stay closed by their own modes.
        with contextlib.suppress(OSError):
            os.chmod(state_dir, 0o711)
        if not reachable(state_dir):
            name = f"gridfabric-{hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:12]}"
            with contextlib.suppress(OSError):
                usual.symlink_to(Path("/var/tmp") / name)
            return Path("/var/tmp") / name
    return usual


def make_root(root: Path, *, for_others: bool) -> None:
    """Make the root; refuses one that somebody else made (below /var/tmp anybody could)."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.lstat(root)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(f"{root} is not a directory of this user")
    os.chmod(root, 0o711 if for_others else 0o700)


def create(root: Path, key: str, *, uid: int, gid: int, files: Mapping[str, bytes], inputs: Sequence[Input]) -> Path:
    """A new directory with the given small files (mode 0600) and copies of the inputs; an older one of this key
    goes."""
    path = f"{root}/{key}"
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        remove(root, key)
        os.mkdir(path, 0o700)
    fill(root, key, files, inputs, uid=uid, gid=gid)
    return Path(path)


def fill(root: Path, key: str, files: Mapping[str, bytes], inputs: Sequence[Input], *, uid: int, gid: int) -> None:
    """Put files into a directory of our own, then make it the job's."""
    path = f"{root}/{key}"
    for name, data in files.items():
        put_file(f"{path}/{name}", data, uid=uid, gid=gid)
    for item in inputs:
        target = f"{path}/{item.name}"
        shutil.copyfile(item.source, target)
        os.chmod(target, 0o700 if item.executable else 0o600)
        if uid > 0:
            os.chown(target, uid, gid)
    if uid > 0:
        os.chown(path, uid, gid)


def put_file(path: str, data: bytes, *, uid: int, gid: int, directory: int | None = None) -> None:
    """A new small file of the job's account, mode 0600; by a name in `directory` if there is one."""
    descriptor = os.open(path, _NEW, 0o600, dir_fd=directory)
    try:
        os.write(descriptor, data)
        if uid > 0:
            os.fchown(descriptor, uid, gid)
    finally:
        os.close(descriptor)


def replace_file(root: Path, key: str, name: str, data: bytes, *, uid: int, gid: int) -> None:
    """Put a new version of a small file (the renewed proxy) into the directory of a running job, atomically."""
    directory = os.open(root / key, DIRECTORY)
    try:
        temporary = f"{name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        put_file(temporary, data, uid=uid, gid=gid, directory=directory)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)


def open_output(root: Path, key: str, name: str, uid: int) -> int:
    """A descriptor of an output file. Raises FileNotFoundError, or OutputError for anything but a plain file of the
    job."""
    *folders, last = name.split("/")
    directory = os.open(root / key, DIRECTORY)
    try:
        for folder in folders:
            below = os.open(folder, DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = below
        descriptor = os.open(last, _READ, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OutputError(f"{name} cannot be read ({error.strerror}); links are not followed") from error
    finally:
        os.close(directory)
    status = os.fstat(descriptor)
    owner = uid if uid > 0 else os.geteuid()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != owner:
        os.close(descriptor)
        raise OutputError(f"{name} is not a plain file of the job")
    return descriptor


def read_output(root: Path, key: str, name: str, uid: int, offset: int, at_most: int) -> bytes:
    """A piece of an output file; empty also for one that is not there, cannot be read or may not be taken."""
    try:
        descriptor = open_output(root, key, name, uid)
    except (OSError, OutputError):
        return b""
    try:
        return os.pread(descriptor, at_most, offset)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def full_file(root: Path, key: str, limit_bytes: int) -> str:
    """A file right in a job's directory that has reached the size limit of a file; empty: none of the first 1000."""
    with contextlib.suppress(OSError), os.scandir(root / key) as entries:
        for entry in itertools.islice(entries, 1000):
            if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_size >= limit_bytes:
                return entry.name
    return ""


def remove(root: Path, key: str) -> None:
    """Remove a job's directory whatever is in it. A name that is not there is no error."""
    path = f"{root}/{key}"
    if os.path.islink(path):
        os.unlink(path)
        return
    try:
        with os.scandir(path) as entries:
            folders = False
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders = True
                else:
                    os.unlink(entry.path)
        if not folders:
            os.rmdir(path)
            return
    except FileNotFoundError:
        return
    except OSError:
        pass
    try:
        shutil.rmtree(path)
    except (OSError, RecursionError):
        # Folders without permissions, or nested deeper than Python recurses.
        with contextlib.suppress(OSError):
            os.chmod(path, 0o700)
        subprocess.run(["chmod", "-R", "u+rwx", "--", path], check=False, capture_output=True, timeout=600)
        subprocess.run(["rm", "-rf", "--", path], check=False, capture_output=True, timeout=600)


def usage(path: Path, max_inodes: int) -> tuple[int, int]:
    """(bytes, i-nodes) below a directory; stops counting beyond `max_inodes`. Neither holes count, nor room that the
    file system keeps ready behind the end of a file."""
    size = inodes = 0
    stack = [str(path)]
    while stack and inodes <= max_inodes:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    inodes += 1
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    size += min(status.st_blocks * 512, status.st_size)
                    if stat.S_ISDIR(status.st_mode):
                        stack.append(entry.path)
                    if inodes > max_inodes:
                        break
        except OSError:
            continue
    return size, inodes


def mirror(source: Path, target: Path) -> int:
    """Keep a world-readable copy of a flat folder (authorities' certificates) where payloads can reach it.

    Returns how many files were written or removed. Follows links (hashed names often are some).
    """
    target.mkdir(mode=0o755, exist_ok=True)
    os.chmod(target, 0o755)
    changed = 0
    wanted: set[str] = set()
    for name in os.listdir(source):
        try:
            status = os.stat(source / name)
        except OSError:
            continue
        if not stat.S_ISREG(status.st_mode) or name.startswith("."):
            continue
        wanted.add(name)
        try:
            there = os.stat(target / name)
            if (there.st_mtime_ns, there.st_size) == (status.st_mtime_ns, status.st_size):
                continue
        except FileNotFoundError:
            pass
        temporary = target / f".{name}.new"
        shutil.copyfile(source / name, temporary)
        os.chmod(temporary, 0o644)
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.rename(temporary, target / name)
        changed += 1
    for name in set(os.listdir(target)) - wanted:
        os.unlink(target / name)
        changed += 1
    return changed


def try_out(root: Path) -> None:
    """Write, read back and remove a small file. Raises OSError."""
    path = root / ".health"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, b"fit")
        if os.pread(descriptor, 3, 0) != b"fit":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    finally:
        os.close(descriptor)
    os.unlink(path)


def free(root: Path) -> tuple[int, int]:
    """(bytes, i-nodes) free on the file system of the scratch space. i-nodes -1: the file system has no fixed
    number."""
    status = os.statvfs(root)
    return status.f_bavail * status.f_frsize, status.f_favail if status.f_files else -1


def keys(root: Path) -> list[str]:
    """Every job directory that is there."""
    try:
        return [name for name in os.listdir(root) if len(name) == 32]
    except FileNotFoundError:
        return []
