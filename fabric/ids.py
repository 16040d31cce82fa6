"""Identifiers that need no coordination."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable

UNIQUE_ID_LENGTH = 22
"""Characters of `unique_id`: 128 bits in base64url without padding, as the unique part of a gLite job id."""


def unique_id(random_bytes: Callable[[int], bytes] = os.urandom) -> str:
    """22 characters of `A-Za-z0-9_-` holding 128 random bits, but for the first: a `-` there would make a command take
    it for an option, and is `A` instead. `random_bytes` is replaceable for repeatable tests."""
    text = base64.urlsafe_b64encode(random_bytes(16)).rstrip(b"=").decode("ascii")
    return "A" + text[1:] if text.startswith("-") else text


def is_unique_id(text: str) -> bool:
    """True if `text` has the form of `unique_id`; says nothing about who made it."""
    return len(text) == UNIQUE_ID_LENGTH and all(c.isascii() and (c.isalnum() or c in "-_") for c in text)
