"""`grid data tree`: what lies below a directory, and at which storage elements."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from agents.catalog import client as catalog
from agents.user_interface import console, data
from agents.user_interface.connection import Grid, open_for_user

BAR_WIDTH = 30


@dataclass
class Use:
    """What files come to. `size_bytes` is of the files, not of their replicas; `lost` have no replica at all."""

    files: int = 0
    size_bytes: int = 0
    replicas: int = 0
    lost: int = 0

    def add(self, size_bytes: int, replicas: int) -> None:
        """One more file."""
        self.files += 1
        self.size_bytes += size_bytes
        self.replicas += replicas
        self.lost += not replicas

    def as_data(self) -> dict[str, int]:
        """As plain data."""
        counts = {"files": self.files, "size_bytes": self.size_bytes, "replicas": self.replicas}
        return {**counts, "without_replica": self.lost}


@dataclass
class Tree:
    """A directory with all below it. `directories`: down to the depth asked, in order of name, each with all below it;
    `elements`: by host:port."""

    directories: dict[str, Use] = field(default_factory=dict[str, Use])
    files_at: Counter[str] = field(default_factory=Counter[str])
    bytes_at: Counter[str] = field(default_factory=Counter[str])


async def measure(grid: Grid, directory: str, depth: int) -> Tree:
    """Add up all files below. Raises GridError."""
    root = directory.rstrip("/")
    tree = Tree({root: Use()})
    async with aclosing(catalog.walk(lambda: grid.channel("catalog"), root)) as pages:
        async for here, entries in pages:
            shown = _shown(root, here, depth)
            for each in shown:
                tree.directories.setdefault(each, Use())
            names = [data.lfn_of(entry) for entry in entries if not (entry.is_directory or entry.alias_of)]
            found, _ = await catalog.lookup(await grid.channel("catalog"), names) if names else ([], [])
            for file in found:
                size_bytes = data.content_of(file).size_bytes
                for each in shown:
                    tree.directories[each].add(size_bytes, len(file.replicas))
                for element in {replica.storage_element for replica in file.replicas}:
                    tree.files_at[element] += 1
                    tree.bytes_at[element] += size_bytes
    tree.directories = dict(sorted(tree.directories.items(), key=lambda item: item[0].split("/")))
    return tree


def _shown(root: str, here: str, depth: int) -> list[str]:
    """The directories of the table that a file here counts in: `root`, and those on the way down to `depth`."""
    below = here.removeprefix(root).strip("/").split("/")
    steps = [step for step in below if step][:depth]
    return ["/".join([root, *steps[:count]]) for count in range(len(steps) + 1)]


async def tree_command(directory: str, depth: int, *, as_json: bool, environ: Mapping[str, str] = os.environ) -> None:
    """`grid data tree`."""
    name = data.check_lfn(directory)
    async with open_for_user(environ) as grid:
        tree = await measure(grid, name, depth)
        known = {f"{element.host}:{element.port}": element for element in await data.elements(grid)}
    places: list[dict[str, Any]] = [
        {
            "storage_element": known[address].name if address in known else address,
            "site": known[address].site if address in known else "",
            "files": tree.files_at[address],
            "size_bytes": size_bytes,
        }
        for address, size_bytes in tree.bytes_at.most_common()
    ]
    if as_json:
        directories = [{"lfn": lfn, **use.as_data()} for lfn, use in tree.directories.items()]
        console.print_json({"directories": directories, "storage_elements": places})
        return
    console.print_table(
        ["FILES", "SIZE", "REPLICAS", "WITHOUT", "DIRECTORY"],
        [
            [use.files, console.bytes_text(use.size_bytes), use.replicas, use.lost or "", lfn]
            for lfn, use in tree.directories.items()
        ],
    )
    most = max((place["size_bytes"] for place in places), default=0) or 1
    console.print_table(
        ["SE", "SITE", "FILES", "SIZE", ""],
        [
            [
                place["storage_element"], place["site"], place["files"], console.bytes_text(place["size_bytes"]),
                "#" * max(1, round(BAR_WIDTH * place["size_bytes"] / most)),
            ]
            for place in places
        ],
    )  # fmt: skip
