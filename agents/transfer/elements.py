"""The storage elements that the agent knows, by name, site or host:port; and the speed caps of links between them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from agents.transfer.model import is_foreign
from fabric.errors import InvalidRequest, NotFound
from fabric.settings import Endpoint

MAX_NAMED = 20
MAX_EXPRESSION_LENGTH = 1000
_URL = re.compile(
    r"(?P<scheme>srm|https|davs|gsiftp)://(?P<address>[A-Za-z0-9.-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5})"
    r"(?P<path>/[A-Za-z0-9._~%+@=:,/-]{0,500})?\Z"
)
_PORTS = {"https": 443, "davs": 443, "gsiftp": 2811}
"""Where a URL says none."""
LEAST_MB_PER_S = 0.3
"""Of a cap: storage elements slow no copy down further."""


class Elements:
    """Storage elements of the settings."""

    def __init__(self, endpoints: Sequence[Endpoint], caps_mb_per_s: Mapping[str, float]) -> None:
        """Raises InvalidRequest(SETTINGS_INVALID)."""
        self._known = {_address(endpoint): endpoint for endpoint in endpoints if endpoint.rpc}
        self._caps: list[tuple[str, str, float]] = []
        for text, mb_per_s in caps_mb_per_s.items():
            source, arrow, destination = (part.strip() for part in text.partition(">"))
            if not (source and arrow and destination) or mb_per_s < LEAST_MB_PER_S:
                raise InvalidRequest(
                    "SETTINGS_INVALID",
                    f"options of the transfer agent: caps_mb_per_s has {text!r} = {mb_per_s:g}; write "
                    f'"CERN > RAL" = 20, at least {LEAST_MB_PER_S:g}',
                )
            self._caps.append((source.lower(), destination.lower(), mb_per_s * 1e6))

    def find(self, wanted: str) -> str:
        """host:port of the element that is meant by a name, a site, an address, or the address in a SURL or TURL; of a
        server of others the URL itself. Raises NotFound(SE_UNKNOWN), InvalidRequest(URL_INVALID)."""
        if is_foreign(wanted):
            return self._find_url(wanted)
        for address in self._known:
            if wanted.lower() in self._names(address):
                return address
        known = ", ".join(f"{e.name} ({e.site})" for e in list(self._known.values())[:MAX_NAMED]) or "none"
        raise NotFound("SE_UNKNOWN", f"no storage element {wanted[:100]!r} is known; known are: {known}", wanted=wanted)

    def _find_url(self, url: str) -> str:
        match = _URL.match(url)
        if match is None or "/../" in f"{url}/":
            raise InvalidRequest(
                "URL_INVALID",
                f"{url[:200]!r} is no place for files; write https://host:port/directory, davs:// or gsiftp://",
            )
        for address, endpoint in self._known.items():
            if match["address"] in (address, f"{endpoint.host}:{endpoint.http}"):
                return address
        if match["scheme"] == "srm":
            return self.find(match["address"])  # says what is known
        port = "" if re.search(r":[0-9]+\Z", match["address"]) else f":{_PORTS[match['scheme']]}"
        return f"{match['scheme']}://{match['address']}{port}{match['path'] or ''}".rstrip("/")

    def matching(self, expression: str) -> list[str]:
        """The elements that an expression means, as `Subscribe` has it. Raises InvalidRequest(SUBSCRIPTION_INVALID)."""
        words = [word.strip().lower() for word in expression.split(",") if word.strip()]
        wanted = [word for word in words if not word.startswith("!")]
        unwanted = [word[1:].strip() for word in words if word.startswith("!")]
        if not wanted or len(expression) > MAX_EXPRESSION_LENGTH:
            raise InvalidRequest(
                "SUBSCRIPTION_INVALID",
                f"{expression[:100]!r} names no storage elements; write names or sites with commas: CERN,RAL or *,!RAL",
            )

        def any_of(patterns: list[str], names: tuple[str, ...]) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)

        found = {address: self._names(address) for address in self._known}
        return [a for a, names in found.items() if any_of(wanted, names) and not any_of(unwanted, names)]

    def name(self, address: str) -> str:
        """What it is called, where it is known."""
        return self._known[address].name if address in self._known else address

    def cap(self, source: str, destination: str) -> float:
        """Bytes a second of the first cap that is about this link; 0: none."""
        for one, other, cap in self._caps:
            if one in ("*", *self._names(source)) and other in ("*", *self._names(destination)):
                return cap
        return 0.0

    def _names(self, address: str) -> tuple[str, ...]:
        endpoint = self._known.get(address)
        names = (endpoint.name.lower(), endpoint.site.lower()) if endpoint is not None else ()
        return (*names, address.lower())


def _address(endpoint: Endpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{host}:{endpoint.rpc}"
