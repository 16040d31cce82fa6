"""The catalogue's section of the cluster file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fabric.settings import parse_options


@dataclass(frozen=True)
class CatalogConfig:
    """Every option with its default."""

    database: str = ""
    """A PostgreSQL server, as `postgresql://lfc@db.example.org/gridfabric`; empty: a file of the agent's own."""
    removal: str = field(default="vo", metadata={"choices": ("vo", "owner")})
    """Who may take away names and replicas: any member of the VO, or the owner alone."""


def parse_config(options: Mapping[str, Any]) -> CatalogConfig:
    """Checked options. Raises InvalidRequest SETTINGS_INVALID naming the option."""
    return parse_options(CatalogConfig, options, where="options of the catalogue")
