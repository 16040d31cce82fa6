"""The VOs of a grid: which there are, who speaks for each, which sites accept them, and which were dissolved.

A name that was dissolved stays in the list, so that whatever was issued for it is refused as long as it lives, with a
sentence that says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from security.errors import MappingError, Reason, os_error_text, utc_text
from security.files import read_bounded, write_atomic

MAX_VOS = 1000
"""In one grid, with those that were dissolved."""
MAX_LIST_BYTES = 2 * 1024 * 1024
EVERYWHERE = "*"
"""Instead of a site: every site of the grid."""

_NAME = re.compile(r"[a-z](?:[a-z0-9.-]{0,38}[a-z])?\Z")


@dataclass(frozen=True)
class VoServer:
    """Who speaks for a VO. A port is 0 where that door is not open (yet)."""

    name: str
    site: str
    host: str
    rpc: int
    ldap: int = 0
    """Of the member list."""
    http: int = 0
    """Of the VOMS door."""


@dataclass(frozen=True)
class Vo:
    """One VO."""

    name: str
    number: int
    """Never given twice: the numeric ids of pool accounts follow it."""
    servers: tuple[VoServer, ...] = ()
    sites: frozenset[str] = frozenset()
    """Which let its members in; EVERYWHERE for all."""
    dissolved_at: datetime | None = None
    reason: str = ""
    """Why it was dissolved; its people are told."""

    def is_accepted_at(self, site: str) -> bool:
        """Whether its members may use a site; an empty site is the grid's central services."""
        return self.dissolved_at is None and (not site or bool(self.sites & {site, EVERYWHERE}))

    def refusal(self, site: str) -> MappingError | None:
        """Why it is not accepted at a site; None if it is."""
        if self.is_accepted_at(site):
            return None
        facts = {"check": "VOs", "vo": self.name}
        if self.dissolved_at is not None:
            why = f" ({self.reason})" if self.reason else ""
            return MappingError(
                Reason.VO_DISSOLVED,
                f"the VO {self.name} was dissolved at {utc_text(self.dissolved_at)}{why} and nothing of it is accepted "
                "any more; ask an operator of the grid about its files",
                facts,
            )
        return MappingError(
            Reason.VO_NOT_ACCEPTED,
            f"the site {site} does not accept the VO {self.name}; use a site that does (grid vo ls), or ask this one",
            {**facts, "site": site},
        )


@dataclass(frozen=True)
class VoList:
    """All VOs of a grid. Fails closed: a list that cannot be understood cannot be made."""

    vos: tuple[Vo, ...] = ()
    _by_name: Mapping[str, Vo] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {vo.name: vo for vo in self.vos})

    def get(self, name: str) -> Vo | None:
        """The VO of this name, also one that was dissolved."""
        return self._by_name.get(name)

    def accepted_at(self, site: str) -> tuple[str, ...]:
        """The VOs whose members may use a site, in the order of their making."""
        return tuple(vo.name for vo in self.vos if vo.is_accepted_at(site))

    def emit(self) -> str:
        """The list as text (JSON)."""
        return json.dumps({"vos": [_emit(vo) for vo in self.vos]}, indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Replace the file atomically (mode 0644). Raises OSError."""
        write_atomic(path, self.emit().encode(), 0o644)

    @classmethod
    def parse(cls, text: str) -> VoList:
        """Read a list. Raises MappingError VO_LIST_UNREADABLE for anything that cannot be understood."""
        try:
            vos = tuple(_parse(item) for item in json.loads(text)["vos"])
            if len({vo.name for vo in vos}) != len(vos) or len({vo.number for vo in vos}) != len(vos):
                raise ValueError("a name or number is there twice")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MappingError(
                Reason.VO_LIST_UNREADABLE,
                f"the list of VOs cannot be understood ({str(error)[:100]}); no member of any VO is let in until it is "
                "corrected",
                {"check": "VOs"},
            ) from error
        return cls(vos)

    @classmethod
    def load(cls, path: Path) -> VoList:
        """Read the file. Raises MappingError VO_LIST_UNREADABLE."""
        try:
            return cls.parse(read_bounded(path, MAX_LIST_BYTES).decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise MappingError(
                Reason.VO_LIST_UNREADABLE,
                f"the list of VOs {path} cannot be read ({os_error_text(error)}); no member of any VO is let in until "
                "it can",
                {"check": "VOs", "path": str(path)},
            ) from error


def check_name(name: str) -> str:
    """A name that a VO can have everywhere: in FQANs, LDAP, LFNs, SURLs, paths and pool accounts. Raises ValueError."""
    if not _NAME.match(name) or ".." in name:
        raise ValueError(
            f"{name[:64]!r} cannot be the name of a VO: a small letter, then up to 39 small letters, digits, '.' and "
            "'-', at last a letter, so that its pool accounts are told from those of others"
        )
    return name


def _emit(vo: Vo) -> dict[str, Any]:
    return {
        "name": vo.name,
        "number": vo.number,
        "servers": [asdict(server) for server in vo.servers],
        "sites": sorted(vo.sites),
        "dissolved_at": vo.dissolved_at.isoformat() if vo.dissolved_at else "",
        "reason": vo.reason,
    }


def _parse(item: Mapping[str, Any]) -> Vo:
    servers = tuple(
        VoServer(
            _text(server["name"]), _text(server["site"]), _text(server["host"]),
            *(_number(server[port], 65535) for port in ("rpc", "ldap", "http")),
        )
        for server in item["servers"]
    )  # fmt: skip
    at = _text(item["dissolved_at"])
    dissolved_at = datetime.fromisoformat(at).astimezone(UTC) if at else None
    sites = frozenset(_text(site) for site in item["sites"])
    return Vo(
        _text(item["name"]), _number(item["number"], MAX_VOS), servers, sites, dissolved_at, _text(item["reason"])
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return value


def _number(value: object, most: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{str(value)[:40]!r} is no number up to {most}")
    return value
