"""The storage element's section of the cluster file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fabric import access
from fabric.errors import InvalidRequest
from fabric.settings import parse_options

MIB = 1 << 20
STRESS_GRID = "cms-stress-test"
"""Name of the grid of `grid demo stress`."""


@dataclass(frozen=True)
class TapeConfig:
    """A tape system behind the disks (docs/data.md, Nearline). The default is made of files and behaves like one."""

    vos: tuple[str, ...]
    """VOs whose files are kept on tape."""
    library: Path = Path("tapes")
    """Directory of the tapes; relative to the state directory."""
    drives: int = field(default=2, metadata={"minimum": 1, "maximum": 64})
    mount_s: float = 60.0
    """To put a tape into a drive."""
    seek_s: float = 30.0
    """To wind a tape from its beginning to its end."""
    mb_per_s: float = field(default=120.0, metadata={"minimum": 0.001})
    """How fast a drive reads and writes (MB = 10^6 bytes)."""
    cartridges: int = field(default=100, metadata={"minimum": 1, "maximum": 99_999})
    cartridge_bytes: int = field(default=400 * 10**9, metadata={"minimum": 1})
    high_water: float = field(default=0.9, metadata={"minimum": 0, "maximum": 1})
    """Part of a VO's disk space from which on files that are on tape leave the disk, ..."""
    low_water: float = field(default=0.75, metadata={"minimum": 0, "maximum": 1})
    """... and where that ends."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of the drives, by VO, while several wait; 1 where nothing is said. Users of a VO share alike."""
    max_requests: int = field(default=20_000, metadata={"minimum": 1})
    """Files waiting for a tape, in all; a tenth of them for one user."""
    max_pin_s: float = 7 * 86400.0
    """How long a user may keep a file on disk with one request."""

    def __post_init__(self) -> None:
        if self.low_water > self.high_water:
            raise ValueError(f"low_water {self.low_water:g} is above high_water {self.high_water:g}; lower it")
        if any(share <= 0 for share in self.shares.values()):
            raise ValueError("a share must be above 0")


@dataclass(frozen=True)
class StorageConfig:
    """Every option with its default. Sizes in bytes, times in seconds."""

    pools: tuple[Path, ...] = ()
    """Directories that hold the data, best one per disk; relative ones start at the state directory. Default: `pool`
    there."""
    pool_bytes: int | None = field(default=None, metadata={"minimum": 1})
    """What each pool may hold, where it is a part of a disk. None: as much as its disk."""
    quota_bytes: int | None = None
    """What each VO may keep here. None: as much as the disks hold."""
    vo_quota_bytes: Mapping[str, int] = field(default_factory=dict)
    """Other quotas, by VO."""
    copies: int = field(default=1, metadata={"minimum": 1, "maximum": 8})
    """In how many pools each file lies: mirrored pools (docs/data.md). Files that are kept on tape lie in one."""
    vo_copies: Mapping[str, int] = field(default_factory=dict)
    """Other numbers, by VO."""
    reserve_bytes: int = 256 * MIB
    """Left free on every disk, so that the host, its logs and its databases live on when the pools are full."""
    max_transfers: int = field(default=64, metadata={"minimum": 1})
    """Transfers at one time, in and out: each holds a descriptor and some MiB of buffers."""
    max_transfers_per_user: int = field(default=48, metadata={"minimum": 1})
    """Of these, for one identity."""
    stall_timeout_s: float = field(default=60.0, metadata={"minimum": 0.01})
    """A transfer in which the other end does nothing for this long is ended and its space freed."""
    write_access: tuple[str, ...] = ()
    """FQANs whose holders may write and remove files (fabric/access.py); their VOs read. Empty: everybody of a VO."""
    scrub_mb_per_s: float = field(default=20.0, metadata={"minimum": 0})
    """How fast files at rest are read to find damage, at most (MB = 10^6 bytes). 0: never."""
    scrub_share: float = field(default=0.1, metadata={"minimum": 0.001, "maximum": 1})
    """Of the time, how much that reading may take."""
    scrub_every_s: float = 7 * 86400.0
    """From the beginning of one round over all files to the next."""
    repair: bool = True
    """Damaged files get the bytes of other replicas without a user. Off: they are marked and told."""
    reconcile_every_s: float = field(default=6 * 3600.0, metadata={"minimum": 0})
    """From one comparison of all files with the catalogue's list to the next. 0: never."""
    dark: str = field(default="report", metadata={"choices": ("report", "remove")})
    """What becomes of files that the catalogue does not list."""
    dark_grace_s: float = field(default=7 * 86400.0, metadata={"minimum": 3600})
    """How long a file was seen as dark, round after round, before it is removed."""
    lost: str = field(default="report", metadata={"choices": ("report", "repair")})
    """What becomes of files that the catalogue lists here and that are not here, but elsewhere."""
    lost_grace_s: float = field(default=86400.0, metadata={"minimum": 3600})
    """How long a file was seen as lost, round after round, before it is made anew."""
    removal: str = field(default="vo", metadata={"choices": ("vo", "owner")})
    """Who may remove a file: any member of its VO, or its owner alone."""
    tape: TapeConfig | None = None
    """None: everything stays on disk."""
    planned_partitions: Mapping[str, Path] = field(default_factory=dict)
    """The old rule, for `grid demo stress` alone: directory of the catalogue -> the one pool for its files. Any other
    grid is refused with it."""

    def quota_of(self, vo: str) -> int | None:
        """The VO's quota; None if there is none."""
        return self.vo_quota_bytes.get(vo, self.quota_bytes)

    def copies_of(self, vo: str) -> int:
        """In how many pools a file of the VO lies."""
        if self.tape is not None and vo in self.tape.vos:
            return 1
        return self.vo_copies.get(vo, self.copies)


def parse_config(options: Mapping[str, Any], state_dir: Path, grid: str = "") -> StorageConfig:
    """Checked options of a storage element of this grid, pools absolute. Raises InvalidRequest SETTINGS_INVALID naming
    the option. Touches no disk."""
    config = parse_options(StorageConfig, options, where="options of the storage element")
    access.check(config.write_access, "options of the storage element, write_access")
    pools = tuple((state_dir / pool).absolute() for pool in config.pools or (Path("pool"),))
    if len(set(pools)) != len(pools):
        raise InvalidRequest(
            "SETTINGS_INVALID", "options of the storage element: 'pools' names a directory twice", key="pools"
        )
    most = max([config.copies, *config.vo_copies.values()])
    if not 1 <= min([config.copies, *config.vo_copies.values()]) <= most <= len(pools):
        raise InvalidRequest(
            "SETTINGS_INVALID",
            f"options of the storage element: 'copies' and 'vo_copies' ask for up to {most} copies of a file in "
            f"different pools, and 'pools' names {len(pools)}; give numbers from 1 to that, or name more pools",
            key="copies",
        )
    planned = {directory: (state_dir / pool).absolute() for directory, pool in config.planned_partitions.items()}
    if planned and grid != STRESS_GRID:
        raise InvalidRequest(
            "SETTINGS_INVALID",
            "options of the storage element: 'planned_partitions' is the rule of 2002, under which files are refused "
            f"though there is room; only the grid {STRESS_GRID!r} of `grid demo stress` may show it. Leave it out",
            key="planned_partitions",
        )
    if strangers := set(planned.values()) - set(pools):
        raise InvalidRequest(
            "SETTINGS_INVALID",
            f"options of the storage element: 'planned_partitions' names {min(strangers)}, which is none of its pools",
            key="planned_partitions",
        )
    tape = config.tape
    if tape is not None:
        tape = replace(tape, library=(state_dir / tape.library).absolute())
    return replace(config, pools=pools, tape=tape, planned_partitions=planned)
