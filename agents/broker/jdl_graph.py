"""The dependencies of a DAG: from names to pairs of numbers, without cycles, bounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agents.broker.jdl_record import Record
from agents.broker.jdl_syntax import JdlError, Node, NodeKind

MAX_DEPENDENCIES = 100_000
"""Pairs of nodes in one DAG."""

Edge = tuple[int, int]
"""(parent, child), numbers of nodes: the child begins when the parent has ended well."""


def edges_of(record: Record, node: Node, numbers: Mapping[str, int]) -> tuple[Edge, ...]:
    """``{ {a, b}, {{b, c}, d} }`` as pairs. `numbers`: of the nodes by their names. Raises JdlError."""
    if node.kind is not NodeKind.LIST:
        raise record.error("JDL_TYPE", "Dependencies must be a list of pairs, {{a, b}, {a, {c, d}}}", "dependencies")
    found: dict[Edge, None] = {}
    for pair in node.items:
        if pair.kind is not NodeKind.LIST or len(pair.items) != 2:
            raise record.error("JDL_TYPE", "a dependency is a pair: {parent, child}", "dependencies", pair)
        parents, children = (_numbers(record, side, numbers) for side in pair.items)
        if len(found) + len(parents) * len(children) > MAX_DEPENDENCIES:
            raise record.error(
                "JDL_TOO_LARGE", f"more than {MAX_DEPENDENCIES} dependencies; let a node gather them", "dependencies"
            )
        found.update(dict.fromkeys((parent, child) for parent in parents for child in children))
    if cycle := find_cycle(len(numbers), found):
        names = {number: name for name, number in numbers.items()}
        path = " -> ".join(names[number] for number in (*cycle, cycle[0]))
        raise record.error(
            "JDL_VALUE", f"these nodes wait for each other: {path}; remove one dependency", "dependencies", node
        )
    return tuple(found)


def _numbers(record: Record, side: Node, numbers: Mapping[str, int]) -> list[int]:
    found: list[int] = []
    for item in side.items if side.kind is NodeKind.LIST else (side,):
        token = item.tokens[0]
        name = token.text.strip("\"'")
        if len(item.tokens) != 1 or name.lower() not in numbers:
            raise JdlError(
                "JDL_VALUE", f"{item.text()[:80]} is no node of this DAG; write names of nodes",
                line=item.line, column=item.column, attribute=record.written["dependencies"].text,
            )  # fmt: skip
        found.append(numbers[name.lower()])
    return found


def find_cycle(count: int, edges: Iterable[Edge]) -> list[int]:
    """The nodes of one cycle in order; empty if there is none. Linear in nodes and edges, without recursion."""
    children: list[list[int]] = [[] for _ in range(count)]
    waits_for = [0] * count
    for parent, child in edges:
        children[parent].append(child)
        waits_for[child] += 1
    free = [number for number in range(count) if not waits_for[number]]
    for number in free:  # grows while it is read
        for child in children[number]:
            waits_for[child] -= 1
            if not waits_for[child]:
                free.append(child)
    if len(free) == count:
        return []
    return _walk({number for number in range(count) if waits_for[number]}, children)


def _walk(caught: set[int], children: Sequence[Sequence[int]]) -> list[int]:
    """Every node left has a parent that is left: walking back from any of them leads into a cycle."""
    parent_of = {child: parent for parent in caught for child in children[parent] if child in caught}
    seen: dict[int, None] = {}
    number = next(iter(caught))
    while number not in seen:
        seen[number] = None
        number = parent_of[number]
    path = list(seen)
    return path[path.index(number) :][::-1]
