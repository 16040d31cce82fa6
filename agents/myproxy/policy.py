"""Who is meant by a list of people: patterns over names. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fabric.rpc.peer import Standing
from security.validation import Identity

ANONYMOUS = "<anonymous>"
"""The name of a client without a certificate, as in the reference implementation."""
AGENT = "agent:"


@dataclass(frozen=True)
class Client:
    """Who is at the other end of a connection, verified; without an identity: nobody in particular."""

    address: str
    """Without the port."""
    identity: Identity | None = None
    standing: Standing = field(default_factory=Standing)

    @property
    def name(self) -> str:
        """The DN, or `<anonymous>`."""
        return str(self.identity.subject) if self.identity is not None else ANONYMOUS

    @property
    def is_limited(self) -> bool:
        """A limited proxy."""
        return self.identity is not None and self.identity.is_limited


def permits(patterns: Iterable[str], client: Client) -> bool:
    """Whether one of the patterns means this client.

    A pattern is a DN in which `*` is any text and `?` any character; it must fit the whole DN, letter case included.
    `agent:KIND` means the agents of that kind of this grid, whatever their names.
    """
    return any(
        client.standing.agent_kind == pattern[len(AGENT) :] if pattern.startswith(AGENT) else fits(pattern, client.name)
        for pattern in patterns
    )


def fits(pattern: str, text: str) -> bool:
    """Whether the whole text fits the pattern; never more than the product of both lengths in steps."""
    at = position = 0
    star, retry = -1, 0
    while position < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, retry = at, position
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[position]):
            at, position = at + 1, position + 1
        elif star >= 0:
            retry += 1
            at, position = star + 1, retry
        else:
            return False
    return all(character == "*" for character in pattern[at:])
