"""Durations and sizes as people write them in a description: `12h`, `30 s`, `365 days`."""

from __future__ import annotations

import re

_UNITS = {
    1: ("s", "sec", "second", "seconds"),
    60: ("m", "min", "minute", "minutes"),
    3600: ("h", "hour", "hours"),
    86400: ("d", "day", "days"),
    365 * 86400: ("y", "year", "years"),
}
_SECONDS = {name: seconds for seconds, names in _UNITS.items() for name in names}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*\Z")


def parse_duration(text: str) -> float:
    """Seconds. Raises ValueError with what is wrong and an example."""
    found = _DURATION.match(text)
    if found is None or found[2] not in _SECONDS:
        raise ValueError(f"{text!r} is not a duration; write a number and a unit, such as 30s, 12h or 365d")
    seconds = float(found[1]) * _SECONDS[found[2]]
    if seconds <= 0:
        raise ValueError(f"{text!r} must be more than nothing")
    return seconds
