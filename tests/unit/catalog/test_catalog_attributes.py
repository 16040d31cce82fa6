from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from agents.catalog import attributes
from agents.catalog.access import Caller, Grant
from agents.catalog.attributes import Attribute, Comparison, Condition, Kind
from agents.catalog.model import Content, NewFile
from agents.catalog.names import Lfn, new_guid
from agents.catalog.store import MIGRATIONS, CatalogStore, metadata
from fabric.errors import Exhausted, InvalidRequest, NotFound, Refused
from fabric.store import Store

ANN, BOB = (Caller(f"/O=EDG/OU=Users/CN={name}", "cms", ()) for name in ("ann", "bob"))
CMS = Lfn("/grid/cms")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[CatalogStore]:
    opened = Store(tmp_path / "catalog.db", metadata, MIGRATIONS)
    yield CatalogStore(opened)
    await opened.close()


async def made(store: CatalogStore, path: str, *given: Attribute) -> Lfn:
    lfn, content = Lfn(path), Content(1, "0a0b0c0d", "ab" * 32)
    await store.register(NewFile(lfn, new_guid(), content, None, ANN, make_parents=True, now_us=5))
    await store.set_attributes(lfn, ANN, given, ())
    return lfn


def where(name: str, kind: Kind, comparison: str, value: str | float) -> Condition:
    return Condition(Attribute.of(name, kind, value), Comparison(comparison))


async def found(store: CatalogStore, *conditions: Condition, at: Lfn = CMS, caller: Caller = ANN) -> list[str]:
    paths, after = await store.find(at, caller, conditions, 0, 2)
    while after:
        more, after = await store.find(at, caller, conditions, after, 2)
        paths += more
    return [path.rpartition("/")[2] for path in paths]


async def test_values_are_compared_within_their_type(store: CatalogStore) -> None:
    values: list[tuple[Kind, Any]] = [
        (Kind.INT, 9), (Kind.INT, 10), (Kind.REAL, 9.5), (Kind.TIME, 10), (Kind.TEXT, "10"), (Kind.TEXT, "größe"),
    ]  # fmt: skip
    for number, (kind, value) in enumerate(values):
        await made(store, f"/grid/cms/{number}", Attribute.of("x", kind, value))
    assert await found(store, where("x", Kind.INT, ">", 9)) == ["1", "2"]
    assert await found(store, where("x", Kind.REAL, "<=", 9.5)) == ["0", "2"]
    assert await found(store, where("x", Kind.TIME, ">=", 0)) == ["3"]
    assert await found(store, where("x", Kind.TEXT, "=", "größe")) == ["5"]
    assert await found(store, where("x", Kind.TEXT, "!=", "10")) == ["5"]
    assert await found(store, where("y", Kind.INT, "!=", 1)) == []
    assert await found(store, where("x", Kind.TEXT, "=", "' OR 1=1 --")) == []
    for number, (kind, value) in enumerate(values):
        assert await store.attributes_of(Lfn(f"/grid/cms/{number}"), ANN) == [Attribute("x", kind, value)]


async def test_all_conditions_hold_in_the_directory_and_below_page_by_page(store: CatalogStore) -> None:
    raw = Attribute.of("kind", Kind.TEXT, "raw")
    for number in range(7):
        await made(store, f"/grid/cms/a/b/{number}", raw, Attribute.of("run", Kind.INT, number))
    await made(store, "/grid/cms/a-b/x", raw)
    is_raw = where("kind", Kind.TEXT, "=", "raw")
    assert await found(store, is_raw, at=Lfn("/grid/cms/a")) == [str(number) for number in range(7)]
    assert await found(store, is_raw, at=Lfn("/grid/cms/a-b")) == ["x"]
    some = (where("run", Kind.INT, ">=", 2), where("run", Kind.INT, "<", 5), is_raw)
    assert await found(store, *some) == ["2", "3", "4"]


async def test_attributes_are_of_the_file_and_go_with_it(store: CatalogStore) -> None:
    lfn, alias = await made(store, "/grid/cms/x", Attribute.of("a", Kind.INT, 1)), Lfn("/grid/cms/y")
    await store.add_alias(lfn, alias, ANN, False, 6)
    given = [Attribute.of("b", Kind.REAL, 2.5), Attribute.of("a", Kind.TEXT, "new")]
    for _ in range(2):
        own, now = await store.set_attributes(alias, ANN, given, ["none"])
        assert (own, [str(one.value) for one in now]) == (lfn.path, ["new", "2.5"])
    assert await store.set_attributes(lfn, ANN, [], ["a"]) == (lfn.path, given[:1])
    assert await found(store, where("b", Kind.REAL, ">", 2)) == ["x"]
    await store.remove(lfn, ANN, False, False)
    assert await found(store, where("b", Kind.REAL, ">", 2)) == []
    with pytest.raises(NotFound):
        await store.attributes_of(alias, ANN)


async def test_who_may_see_the_file_sees_its_attributes(store: CatalogStore) -> None:
    raw = Attribute.of("kind", Kind.TEXT, "raw")
    closed, shown = await made(store, "/grid/cms/closed/x", raw), await made(store, "/grid/cms/shown/y", raw)
    await store.set_access(Lfn("/grid/cms/closed"), ANN, [Grant.of(ANN.subject, ["list"], "cms")])
    await store.set_access(Lfn("/grid/cms/shown"), ANN, [Grant.of(BOB.subject, ["list"], "cms")])
    condition = where("kind", Kind.TEXT, "=", "raw")
    assert await found(store, condition, caller=BOB) == ["y"]
    for refused in (
        store.attributes_of(closed, BOB),
        store.find(Lfn("/grid/cms/closed"), BOB, [condition], 0, 9),
        store.set_attributes(shown, BOB, [raw], ()),
    ):
        with pytest.raises(Refused):
            await refused


async def test_there_are_bounds(store: CatalogStore) -> None:
    lfn = await made(store, "/grid/cms/x")
    many = [Attribute.of(f"a{number}", Kind.INT, number) for number in range(attributes.MAX_ATTRIBUTES + 1)]
    await store.set_attributes(lfn, ANN, many[1:], ())
    with pytest.raises(Exhausted):
        await store.set_attributes(lfn, ANN, many[:1], ())
    assert len(await store.attributes_of(lfn, ANN)) == attributes.MAX_ATTRIBUTES


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("", Kind.INT, 1), ("1a", Kind.INT, 1), ("a b", Kind.INT, 1), ("a" * 65, Kind.INT, 1), ("ä", Kind.INT, 1),
        ("a", Kind.TEXT, "x" * 513), ("a", Kind.TEXT, "\0"), ("a", Kind.TEXT, "\u202e"),
        ("a", Kind.INT, (1 << 53) + 1), ("a", Kind.TIME, -(1 << 60)), ("a", Kind.REAL, float("nan")),
        ("a", Kind.REAL, float("inf")),
    ],
)  # fmt: skip
def test_what_is_no_attribute_is_refused(name: str, kind: Kind, value: str | float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Attribute.of(name, kind, value)
    assert caught.value.reason == "ATTRIBUTE_INVALID"


async def test_a_search_goes_by_the_index_of_its_first_condition(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(store, "/grid/cms/x", Attribute.of("a", Kind.INT, 1))
    plans: list[str] = []
    real = attributes.rows

    def explained(connection: sa.Connection, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        plans.extend(str(row[-1]) for row in real(connection, f"EXPLAIN QUERY PLAN {sql}", values))
        return real(connection, sql, values)

    monkeypatch.setattr(attributes, "rows", explained)
    assert await found(store, where("a", Kind.INT, ">", 0), where("a", Kind.INT, "<", 5)) == ["x"]
    assert plans[0].startswith("SEARCH a USING INDEX ix_attributes_number (name=? AND number>?)"), plans
    assert not any(plan.startswith("SCAN") for plan in plans), plans
