"""The settings of one agent: the plain dict that starts it, read once into frozen, checked structures.

Anything wrong (an unknown key, a wrong type, a missing path) is one `InvalidRequest` SETTINGS_INVALID that names the
key, raised before any port opens.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

from fabric.errors import InvalidRequest
from security.errors import os_error_text

T = TypeVar("T")


PROTOCOLS = ("rpc", "ldap", "ldaps", "http", "myproxy")
"""What an agent's ports may be for."""


@dataclass(frozen=True)
class Endpoint:
    """Where one service listens. A port is 0 when the service does not offer that protocol."""

    kind: str
    name: str
    host: str
    site: str = ""
    rpc: int = 0
    ldap: int = 0
    ldaps: int = 0
    http: int = 0
    myproxy: int = 0
    """Of a credential store only."""

    @property
    def address(self) -> str:
        """`host:port` of the gRPC door, for sentences."""
        return f"{self.host}:{self.rpc}"


@dataclass(frozen=True)
class FabricOptions:
    """The section `fabric` of the settings: how the shell itself behaves. All are optional."""

    map_updater: bool = True
    """Keep <state_dir>/grid-mapfile from the VO servers' member lists. Off: somebody else writes the file."""
    map_refresh_s: float = 2.0
    """How often the member lists are asked."""
    map_shrink_share: float = field(default=0.2, metadata={"minimum": 0, "maximum": 1})
    """A member list that loses more than this share of its people is held for confirmation; 1: never."""
    map_shrink_least: int = field(default=20, metadata={"minimum": 1})
    """Fewer people than this are removed at once, whatever their share."""
    trust_updater: bool = True
    """Fetch revocation lists into the certificates directory."""
    crl_refresh_s: float = 2.0
    """How often revocation lists are asked; agents of one host share one fetcher."""
    trust_poll_s: float = 1.0
    """How often the certificates directory, map file and ban list are looked at."""
    ban_updater: bool = True
    """Follow the authority's ban list."""
    vo_updater: bool = True
    """Follow the authority's list of VOs."""
    ban_file: str = ""
    """Path of the ban list; empty: <state_dir>/bans."""
    map_file: str = ""
    """Path of the map file; empty: <state_dir>/grid-mapfile."""
    mapping: str = field(default="coarse", metadata={"choices": ("coarse", "vo-groups")})
    """`coarse`: the map file says who a person is here. `vo-groups`: the groups and roles in the proxy do."""
    group_map: str = ""
    """Path of the rules of `vo-groups`; empty: <state_dir>/groupmapfile."""
    vomsdir: str = ""
    """Folder of `<vo>/<host>.lsc` files; empty: `vomsdir` beside the certificates directory."""
    gridmapdir: str = ""
    """Path of the pool account directory; if set, a user's session leases an account (gatekeepers only)."""
    publish_valid_for_s: float = field(default=8.0, metadata={"minimum": 0.1})
    """What this agent publishes stands so long without a sign of life; it shows one four times as often."""
    keepalive_s: float = field(default=2.5, metadata={"minimum": 0.5})
    """How often a quiet connection to another service is tested; by servers half as often."""
    crl_policy: str = field(default="require", metadata={"choices": ("require", "warn", "ignore")})
    """What a missing revocation list means."""
    expired_crl_policy: str = field(default="same", metadata={"choices": ("same", "require", "warn", "ignore")})
    """What a revocation list past its nextUpdate means; `same`: as `crl_policy`."""
    session_lifetime_s: float = field(default=12 * 3600.0, metadata={"minimum": 1})
    """Longest session; never longer than the chain's own life."""
    max_sessions: int = field(default=4096, metadata={"minimum": 1})
    """Sessions of one server; the least recently used of the owner with the most goes first."""
    max_sessions_per_owner: int = field(default=64, metadata={"minimum": 1})
    """Sessions of one subject; its own least recently used goes first."""
    stop_grace_s: float = 10.0
    """How long a stop waits for open calls and for the agent to flush."""
    log_stderr: bool = False
    """Also write log lines to standard error."""


@dataclass(frozen=True)
class Settings:
    """Typed view of an agent's settings; see docs/architecture.md section 3 for the meaning of each key."""

    grid: str
    kind: str
    name: str
    site: str
    host: str
    listen: str
    advertise: str
    ports: Mapping[str, int]
    state_dir: Path
    certificates: Path
    credential: Path
    organisation: str
    vos: tuple[str, ...]
    """Of the grid description; `AgentContext.vos` says which there are now."""
    all_endpoints: Mapping[str, tuple[Endpoint, ...]]
    options: Mapping[str, Any]
    fabric: FabricOptions = field(default_factory=FabricOptions)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Settings:
        """Check and read the plain dict. Raises InvalidRequest SETTINGS_INVALID. Does not touch the disk."""
        where = f"settings of {raw.get('name', 'an agent')}"
        known = {
            "grid", "kind", "name", "site", "host", "listen", "advertise", "ports", "state_dir", "certificates",
            "credential", "organisation", "vo", "vos", "endpoints", "options", "fabric",
        }  # fmt: skip
        _refuse_unknown(raw, known, where)

        def text(key: str) -> str:
            value = raw.get(key)
            if not isinstance(value, str) or not value:
                raise _invalid(where, key, "must be a text that is not empty" if key in raw else "is missing")
            return value

        kind = text("kind")
        if not kind.isidentifier():
            raise _invalid(where, "kind", f"must be the name of a folder in agents/, not {kind!r}")
        vos = raw.get("vos", raw.get("vo", []))
        vos = [vos] if isinstance(vos, str) else vos
        if not _is_sequence(vos) or not all(isinstance(vo, str) and vo for vo in vos):
            raise _invalid(where, "vos", "must be a list of VO names")
        return cls(
            grid=text("grid"),
            kind=kind,
            name=text("name"),
            site=text("site"),
            host=text("host"),
            listen=text("listen"),
            advertise=text("advertise"),
            ports=_ports(_mapping(raw, "ports", where), f"{where}, ports"),
            state_dir=Path(text("state_dir")),
            certificates=Path(text("certificates")),
            credential=Path(text("credential")),
            organisation=text("organisation"),
            vos=tuple(cast("Sequence[str]", vos)),
            all_endpoints=_endpoints(_mapping(raw, "endpoints", where), where),
            options=MappingProxyType(dict(_mapping(raw, "options", where))),
            fabric=parse_options(FabricOptions, _mapping(raw, "fabric", where), where=f"{where}, fabric"),
        )

    @classmethod
    def load(cls, path: str | Path) -> Settings:
        """Read a JSON file. Raises InvalidRequest SETTINGS_INVALID."""
        try:
            raw: Any = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise InvalidRequest(
                "SETTINGS_INVALID", f"settings file {path} cannot be read ({os_error_text(error)})"
            ) from error
        except ValueError as error:
            raise InvalidRequest("SETTINGS_INVALID", f"settings file {path} is not JSON ({error})") from error
        if not isinstance(raw, dict):
            raise InvalidRequest("SETTINGS_INVALID", f"settings file {path} must hold one JSON object")
        return cls.from_dict(cast("dict[str, Any]", raw))

    @property
    def rpc_port(self) -> int:
        """The gRPC port to bind; 0 lets the system choose (tests)."""
        return self.ports.get("rpc", 0)

    @property
    def subject(self) -> str:
        """This agent's own DN as its certificate should have it."""
        return f"{self.organisation}/OU={self.site}/CN={self.kind}/{self.name}"

    def endpoints(self, kind: str, site: str | None = None) -> tuple[Endpoint, ...]:
        """Every known service of a kind, at one site if given; may be empty."""
        found = self.all_endpoints.get(kind, ())
        return found if site is None else tuple(endpoint for endpoint in found if endpoint.site == site)

    def endpoint_named(self, kind: str, name: str, site: str) -> Endpoint | None:
        """The service that has this name at this site; None if there is none, or more than one."""
        found = [endpoint for endpoint in self.endpoints(kind, site) if endpoint.name == name]
        return found[0] if len(found) == 1 and name and site else None

    def endpoint_meant(self, kind: str, wanted: str) -> Endpoint | None:
        """The service that people call so: by its name, its site, its host:port, or its host."""
        found = self.endpoints(kind)
        named = (one for one in found if wanted in (one.name, one.address, one.site))
        return next(named, None) or next((one for one in found if wanted == one.host), None)

    def endpoint(self, kind: str, site: str | None = None) -> Endpoint:
        """The first service of a kind, at one site if given. Raises InvalidRequest ENDPOINT_UNKNOWN."""
        found = self.endpoints(kind, site)
        if not found:
            place = f" at site {site}" if site is not None else ""
            raise InvalidRequest(
                "ENDPOINT_UNKNOWN",
                f"{self.name} needs a {kind} service{place} and its settings name none; add it to the grid description",
                kind=kind,
            )
        return found[0]


def parse_options(cls: type[T], raw: Mapping[str, Any], where: str = "options") -> T:
    """A frozen dataclass from a plain dict, every key and type checked.

    Field types: bool, int, float (also from int), str, Path, Enum (by value), tuple[X, ...] (from a list),
    Mapping[str, X], X | None, and nested dataclasses. Names carry units: `..._s` is a number of seconds and
    `..._bytes` a whole number, both not negative. `field(metadata={"minimum": 1, "maximum": 9, "choices": (...)})`
    narrows further. Raises InvalidRequest SETTINGS_INVALID naming the key, with the nearest known key for an unknown
    one.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cast("Any", cls)) if f.init}
    _refuse_unknown(raw, set(fields), where)
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        if name in raw:
            value = _convert(hints[name], raw[name], where, name)
            _check_bounds(value, spec.metadata, where, name)
            values[name] = value
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise _invalid(where, name, "is missing")
    try:
        return cls(**values)
    except ValueError as error:  # a __post_init__ that compares several keys
        raise InvalidRequest("SETTINGS_INVALID", f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, where, key)
    if origin in (tuple, list, frozenset) or origin is Sequence:
        if not _is_sequence(value):
            raise _invalid(where, key, "must be a list")
        item = typing.get_args(hint)[0]
        converted = [_convert(item, v, where, f"{key}[{i}]") for i, v in enumerate(value)]
        return frozenset(converted) if origin is frozenset else tuple(converted)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _invalid(where, key, "must be a table")
        table = cast("Mapping[str, Any]", value)
        item = typing.get_args(hint)[1]
        return MappingProxyType({str(k): _convert(item, v, where, f"{key}.{k}") for k, v in table.items()})
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise _invalid(where, key, "must be a table")
        return parse_options(hint, cast("Mapping[str, Any]", value), f"{where}, {key}")
    return _convert_plain(hint, value, where, key)


def _convert_union(members: tuple[Any, ...], value: Any, where: str, key: str) -> Any:
    if value is None and type(None) in members:
        return None
    problem: InvalidRequest | None = None
    for member in members:
        if member is type(None):
            continue
        try:
            return _convert(member, value, where, key)
        except InvalidRequest as error:
            problem = problem or error
    raise problem or _invalid(where, key, "has a value of no accepted kind")


_PLAIN: Mapping[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda v: isinstance(v, bool), "true or false"),
    int: (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    float: (lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and v == v, "a number"),
    str: (lambda v: isinstance(v, str), "a text"),
}


def _convert_plain(hint: Any, value: Any, where: str, key: str) -> Any:
    if hint is Any or hint is object:
        return value
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            raise _invalid(
                where, key, f"must be one of {', '.join(str(m.value) for m in hint)}, not {value!r}"
            ) from None
    if hint is Path:
        if not isinstance(value, (str, Path)):
            raise _invalid(where, key, f"must be a path, not {value!r}")
        return Path(value)
    accepted = _PLAIN.get(hint)
    if accepted is None:
        raise TypeError(f"parse_options cannot read fields of type {hint!r} ({where}, {key})")
    check, words = accepted
    if not check(value):
        raise _invalid(where, key, f"must be {words}, not {value!r}")
    return float(value) if hint is float else value


def _check_bounds(value: Any, metadata: Mapping[Any, Any], where: str, key: str) -> None:
    choices = metadata.get("choices")
    if choices is not None and value not in choices:
        raise _invalid(where, key, f"must be one of {', '.join(map(str, choices))}, not {value!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    measured = key.endswith(("_s", "_bytes", "_ms", "_us"))
    minimum, maximum = metadata.get("minimum", 0 if measured else None), metadata.get("maximum")
    if minimum is not None and value < minimum:
        raise _invalid(where, key, f"must be at least {minimum}, not {value}")
    if maximum is not None and value > maximum:
        raise _invalid(where, key, f"must be at most {maximum}, not {value}")


def _refuse_unknown(raw: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise _invalid(where, str(key), f"is not known; {hint}")


def _invalid(where: str, key: str, problem: str) -> InvalidRequest:
    return InvalidRequest("SETTINGS_INVALID", f"{where}: {key!r} {problem}", key=key)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _mapping(raw: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = raw.get(key, {})
    if not isinstance(value, Mapping):
        raise _invalid(where, key, "must be a table")
    return cast("Mapping[str, Any]", value)


def _ports(raw: Mapping[str, Any], where: str) -> Mapping[str, int]:
    for name, port in raw.items():
        if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
            raise _invalid(where, name, f"must be a port number, not {port!r}")
    return MappingProxyType({str(name): int(port) for name, port in raw.items()})


def _endpoints(raw: Mapping[str, Any], where: str) -> Mapping[str, tuple[Endpoint, ...]]:
    found: dict[str, tuple[Endpoint, ...]] = {}
    for kind, listed in raw.items():
        if not _is_sequence(listed):
            raise _invalid(where, f"endpoints.{kind}", "must be a list of services")
        found[kind] = tuple(
            parse_options(Endpoint, {"kind": kind, **_row(item, where, kind)}, f"{where}, endpoints.{kind}")
            for item in cast("Sequence[Any]", listed)
        )
    return MappingProxyType(found)


def _row(item: Any, where: str, kind: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise _invalid(where, f"endpoints.{kind}", "must be a list of tables")
    return dict(cast("Mapping[str, Any]", item))
