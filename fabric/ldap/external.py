"""SASL EXTERNAL: a client is who its TLS certificate says. Which certificates are good is not decided here."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable


class ExternalRefusedError(Exception):
    """SASL EXTERNAL is not for this client; `missing` if it showed no certificate."""

    def __init__(self, sentence: str, *, missing: bool = False) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.missing = missing


ExternalFunction = Callable[[ssl.SSLObject], Awaitable[str]]
"""Gives the name (RFC 4514) behind a client's certificate. Raises ExternalRefusedError."""
