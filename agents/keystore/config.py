"""The key store's section of the cluster file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fabric.settings import parse_options


@dataclass(frozen=True)
class KeyStoreConfig:
    """Every option with its default."""

    max_keys_per_owner: int = field(default=1_000_000, metadata={"minimum": 1})
    """Shares that one person may keep here."""


def parse_config(options: Mapping[str, Any]) -> KeyStoreConfig:
    """Checked options. Raises InvalidRequest SETTINGS_INVALID naming the option."""
    return parse_options(KeyStoreConfig, options, where="options of the key store")
