"""Storage URLs: `srm://<host>:<port>/<vo>/<file id>`. The id is opaque and says nothing about a logical file name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fabric.errors import InvalidRequest

MAX_SURL_LENGTH = 512
"""Characters; a host name has at most 253, a VO 64, an id 32."""

_SURL = re.compile(
    r"srm://(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])"
    r":(?P<port>[1-9][0-9]{0,4})/(?P<vo>[a-z0-9][a-z0-9._-]{0,63})/(?P<file_id>[0-9a-f]{32})\Z"
)
_FILE_ID = re.compile(r"[0-9a-f]{32}\Z")
_VO = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class Surl:
    """A parsed SURL. `str()` gives it back."""

    host: str
    port: int
    vo: str
    file_id: str

    def __str__(self) -> str:
        return f"srm://{self.host}:{self.port}/{self.vo}/{self.file_id}"

    @property
    def rpc_host(self) -> str:
        """The host as a socket wants it: an IPv6 address without its brackets."""
        return self.host.strip("[]")


def parse_surl(text: str) -> Surl:
    """The SURL in `text`. Raises InvalidRequest(SURL_INVALID)."""
    match = _SURL.match(text) if len(text) <= MAX_SURL_LENGTH else None
    if match is None or int(match["port"]) > 65535:
        raise InvalidRequest(
            "SURL_INVALID",
            f"{text[:200]!r} is not a SURL; write srm://<host>:<port>/<vo>/<id> as the catalogue gives it",
        )
    return Surl(match["host"], int(match["port"]), match["vo"], match["file_id"])


def is_file_id(text: str) -> bool:
    """True for the opaque id of a file, the only text that ever becomes part of a physical path."""
    return _FILE_ID.match(text) is not None


def is_vo_name(text: str) -> bool:
    """True for a VO name that can stand in a SURL."""
    return _VO.match(text) is not None
