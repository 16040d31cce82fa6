from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agents.catalog import access
from agents.catalog import store as rows
from agents.catalog.access import Caller, Grant
from agents.catalog.model import Content, NewFile, Replica
from agents.catalog.names import Lfn, new_guid, parse_lfn
from agents.catalog.store import MIGRATIONS, CatalogStore, metadata
from fabric.errors import AlreadyExists, Conflict, DataCorrupted, Exhausted, GridError, NotFound, Refused
from fabric.store import Store, run

ANN, BOB = (Caller(f"/O=EDG/OU=Users/CN={name}", "cms", ()) for name in ("ann", "bob"))
STRANGER = Caller("/O=EDG/OU=Users/CN=eve", "atlas", ())
CONTENT = Content(10, "0a0b0c0d", "ab" * 32)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[CatalogStore]:
    opened = Store(tmp_path / "catalog.db", metadata)
    yield CatalogStore(opened)
    await opened.close()


def new(path: str, guid: str = "", **more: Any) -> NewFile:
    values: dict[str, Any] = {
        "content": CONTENT,
        "replica": Replica(f"srm://h:1/cms/{abs(hash(path)):032x}", "h:1", 5),
        "caller": ANN,
        "make_parents": True,
        "now_us": 5,
    }
    return NewFile(lfn=Lfn(path), guid=guid or new_guid(), **{**values, **more})


def expect(kind: type[GridError], reason: str) -> Any:
    class Expect:
        def __enter__(self) -> Any:
            self.raises = pytest.raises(kind)
            self.caught = self.raises.__enter__()
            return self.caught

        def __exit__(self, *args: Any) -> Any:
            result = self.raises.__exit__(*args)
            assert self.caught.value.reason == reason
            return result

    return Expect()


async def names(store: CatalogStore, directory: str) -> list[str]:
    return [entry.lfn.rpartition("/")[2] for entry in await store.page(Lfn(directory), ANN, "", 1000)]


async def test_register_and_look_up_by_both_names(store: CatalogStore) -> None:
    file = new("/grid/cms/a/b/c.root")
    made = await store.register(file)
    assert await store.lookup([file.lfn], [], ANN) == [made]
    assert await store.lookup([], [file.guid], ANN) == [made]
    assert await store.lookup([], [file.guid], STRANGER) == []
    assert await store.lookup([Lfn("/grid/cms/a/b")], [], ANN) == []
    assert (made.lfn, made.owner, made.content, [r.surl for r in made.replicas]) == (
        "/grid/cms/a/b/c.root", ANN.subject, CONTENT, [file.replica.surl] if file.replica else [],
    )  # fmt: skip
    assert await names(store, "/grid") == ["cms"]
    assert await names(store, "/grid/cms/a") == ["b"]


async def test_repeating_a_registration_succeeds_and_adds_nothing(store: CatalogStore) -> None:
    file = new("/grid/cms/x")
    first = await store.register(file)
    assert await store.register(file) == first
    with expect(DataCorrupted, "CONTENT_DIFFERS"):
        await store.register(new("/grid/cms/x", file.guid, content=Content(11, "0a0b0c0d", "ab" * 32)))


async def test_a_name_belongs_to_one_file_and_the_refusal_says_whose(store: CatalogStore) -> None:
    first = await store.register(new("/grid/cms/x"))
    with expect(AlreadyExists, "LFN_TAKEN") as caught:
        await store.register(new("/grid/cms/x", caller=BOB))
    assert (caught.value.facts["guid"], caught.value.facts["owner"]) == (first.guid, ANN.subject)
    assert first.guid in caught.value.sentence and ANN.subject in caught.value.sentence
    with expect(AlreadyExists, "GUID_TAKEN"):
        await store.register(new("/grid/cms/y", first.guid))
    with expect(AlreadyExists, "LFN_TAKEN"):
        await store.register(new("/grid/cms/x/below"))
    await store.make_directory(Lfn("/grid/cms/dir"), ANN, False, 5)
    with expect(AlreadyExists, "LFN_TAKEN"):
        await store.register(new("/grid/cms/dir"))
    assert await names(store, "/grid/cms") == ["dir", "x"]


async def test_a_refused_registration_leaves_nothing(store: CatalogStore) -> None:
    first = await store.register(new("/grid/cms/x"))
    with expect(AlreadyExists, "SURL_TAKEN"):
        await store.register(new("/grid/cms/deep/er/y", replica=first.replicas[0]))
    assert await names(store, "/grid/cms") == ["x"]


async def test_parents_only_when_asked(store: CatalogStore) -> None:
    with expect(NotFound, "DIRECTORY_NOT_FOUND"):
        await store.register(new("/grid/cms/a/b", make_parents=False))
    await store.register(new("/grid/cms/b", make_parents=False))
    with expect(NotFound, "DIRECTORY_NOT_FOUND"):
        await store.make_directory(Lfn("/grid/cms/p/q"), ANN, False, 5)
    await store.make_directory(Lfn("/grid/cms/p/q"), ANN, True, 5)
    await store.make_directory(Lfn("/grid/cms/p/q"), BOB, False, 6)
    await store.make_directory(Lfn("/grid/atlas"), ANN, False, 5)
    assert await names(store, "/grid") == ["atlas", "cms"]
    with expect(AlreadyExists, "LFN_TAKEN"):
        await store.make_directory(Lfn("/grid/cms/b"), ANN, False, 5)


async def test_replicas_must_be_copies(store: CatalogStore) -> None:
    file = await store.register(new("/grid/cms/x"))
    second = Replica("srm://other:2/cms/" + "1" * 32, "other:2", 9)
    for key in (Lfn("/grid/cms/x"), file.guid):
        await store.add_replica(key, ANN, Content(10, "0a0b0c0d"), second)
    (found,) = await store.lookup([Lfn("/grid/cms/x")], [], ANN)
    assert found.replicas == (*file.replicas, second)
    for wrong in (Content(11, "0a0b0c0d"), Content(10, "00000000"), Content(10, "0a0b0c0d", "cd" * 32)):
        with expect(DataCorrupted, "CONTENT_DIFFERS"):
            await store.add_replica(file.guid, ANN, wrong, Replica("srm://x:1/cms/" + "2" * 32, "x:1"))
    with expect(NotFound, "LFN_NOT_FOUND"):
        await store.add_replica(file.guid, STRANGER, CONTENT, second)
    for _ in range(2):
        await store.remove_replica(file.guid, ANN, second.surl, False)
    (found,) = await store.lookup([], [file.guid], ANN)
    assert found.replicas == file.replicas


async def test_removal(store: CatalogStore) -> None:
    file = await store.register(new("/grid/cms/d/x"))
    x, d = Lfn("/grid/cms/d/x"), Lfn("/grid/cms/d")
    with expect(Conflict, "HAS_REPLICAS"):
        await store.remove(x, ANN, False, False)
    with expect(Conflict, "DIRECTORY_NOT_EMPTY"):
        await store.remove(d, ANN, True, False)
    with expect(Refused, "NOT_OWNER"):
        await store.remove(x, BOB, True, True)
    with expect(Refused, "NOT_OWNER"):
        await store.remove_replica(x, BOB, file.replicas[0].surl, True)
    await store.remove(x, ANN, True, True)
    with expect(NotFound, "LFN_NOT_FOUND"):
        await store.remove(x, ANN, False, False)
    await store.remove(d, ANN, False, False)
    assert await names(store, "/grid/cms") == []
    with expect(NotFound, "DIRECTORY_NOT_FOUND"):
        await store.page(d, ANN, "", 10)
    await store.register(new("/grid/cms/d/x", file.guid))


async def test_pages_of_awkward_names(store: CatalogStore) -> None:
    made = ["a", "B", "ä", "漢" * 255, "z" * 255, "with space", "%", "_", "'; DROP TABLE files; --", "𝕏", "10", "9"]
    for name in made:
        await store.register(new(str(parse_lfn(f"/grid/cms/{name}"))))
    seen: list[str] = []
    while page := await store.page(Lfn("/grid/cms"), ANN, seen[-1] if seen else "", 5):
        seen += [entry.lfn.rpartition("/")[2] for entry in page]
    assert seen == sorted(made, key=lambda name: name.encode())
    with expect(Conflict, "NOT_A_DIRECTORY"):
        await store.page(Lfn("/grid/cms/a"), ANN, "", 5)
    assert await store.page(Lfn("/grid/atlas"), ANN, "", 5) == []


async def test_look_up_in_bulk_keeps_the_order_asked(store: CatalogStore) -> None:
    made = await asyncio.gather(*(store.register(new(f"/grid/cms/d{n % 7}/{n}")) for n in range(300)))
    wanted = [Lfn(entry.lfn) for entry in reversed(made)]
    wanted.insert(150, Lfn("/grid/cms/none/there"))
    assert await store.lookup(wanted, [], ANN) == list(reversed(made))
    assert await store.lookup([], [entry.guid for entry in made[::-1]], ANN) == list(reversed(made))


async def test_one_of_two_registrations_of_a_name_at_once_wins(store: CatalogStore) -> None:
    results = await asyncio.gather(
        *(store.register(new("/grid/cms/x", replica=None)) for _ in range(20)), return_exceptions=True
    )
    assert sum(not isinstance(r, AlreadyExists) for r in results) == 1


async def test_an_alias_is_a_name_of_the_file_and_goes_with_it(store: CatalogStore) -> None:
    file = new("/grid/cms/mc/x")
    own, alias, second = file.lfn, Lfn("/grid/cms/user/a"), Lfn("/grid/cms/user/deep/b")
    made = await store.register(file)
    with expect(NotFound, "DIRECTORY_NOT_FOUND"):
        await store.add_alias(own, alias, BOB, False, 6)
    for _ in range(2):
        assert await store.add_alias(own, alias, BOB, True, 6) == file.guid
    assert await store.add_alias(alias, second, ANN, True, 7) == file.guid  # of the file, not of the alias: no chain
    assert await store.add_alias(second, alias, ANN, True, 7) == file.guid  # so no loop either
    assert await store.add_alias(alias, own, ANN, True, 7) == file.guid  # its own name is one already
    assert await store.names_of(second, ANN) == [own.path, alias.path, second.path]

    (found,) = await store.lookup([alias], [], ANN)
    assert (found.lfn, found.alias_of, found.guid, found.replicas) == (alias.path, own.path, file.guid, made.replicas)
    assert await store.lookup([], [file.guid], ANN, [made.replicas[0].surl]) == [made, made]
    assert [(e.lfn, e.alias_of) for e in await store.page(Lfn("/grid/cms/user"), ANN, "", 9)] == [
        (alias.path, own.path), ("/grid/cms/user/deep", ""),
    ]  # fmt: skip
    await store.add_replica(alias, ANN, CONTENT, Replica("srm://o:1/cms/2", "o:1", 8))
    assert len((await store.lookup([own], [], ANN))[0].replicas) == 2
    with expect(AlreadyExists, "LFN_TAKEN"):
        await store.register(new(alias.path))

    with expect(Refused, "NOT_OWNER"):
        await store.remove(alias, ANN, True, True)  # it is bob's
    await store.remove(alias, BOB, False, True)
    assert await store.names_of(own, ANN) == [own.path, second.path]
    await store.set_access(second, ANN, [Grant.of(ANN.subject, ["list"], "cms")])
    assert await store.names_of(own, BOB) == [own.path]
    await store.remove(own, ANN, True, True)
    assert await store.lookup([own, alias, second], [file.guid], ANN) == []
    with expect(NotFound, "LFN_NOT_FOUND"):
        await store.add_alias(second, alias, ANN, True, 9)
    await store.register(new(second.path))
    assert len(await store.lookup([second], [], BOB)) == 1  # the list of the alias went with it


async def test_an_alias_opens_nothing_that_is_closed(store: CatalogStore) -> None:
    file, alias = new("/grid/cms/closed/x"), Lfn("/grid/cms/open/x")
    await store.register(file)
    await store.add_alias(file.lfn, alias, BOB, True, 6)
    await store.set_access(Lfn("/grid/cms/closed"), ANN, [Grant.of(ANN.subject, ["list"], "cms")])
    with expect(Refused, "ACCESS_DENIED"):
        await store.lookup([alias], [], BOB)
    with expect(Refused, "ACCESS_DENIED"):
        await store.add_alias(file.guid, Lfn("/grid/cms/open/y"), BOB, True, 7)
    with expect(NotFound, "LFN_NOT_FOUND"):
        await store.add_alias(file.guid, Lfn("/grid/atlas/y"), STRANGER, True, 7)
    assert len(await store.lookup([alias], [], ANN)) == 1


async def test_aliases_are_bounded_and_one_of_many_at_once_has_the_name(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_ALIASES", 3)
    files = [await store.register(new(f"/grid/cms/f{n}")) for n in range(6)]
    wanted = Lfn("/grid/cms/alias")
    outcomes = await asyncio.gather(
        *(store.add_alias(file.guid, wanted, ANN, True, 6) for file in files), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AlreadyExists"] * 5 + ["str"]
    await asyncio.gather(store.remove(wanted, ANN, False, False), *(store.lookup([wanted], [], ANN) for _ in range(20)))
    assert await store.lookup([wanted], [], ANN) == []
    for n in range(3):
        await store.add_alias(files[0].guid, Lfn(f"/grid/cms/a{n}"), ANN, True, 7)
    with expect(Exhausted, "TOO_MANY_ALIASES"):
        await store.add_alias(files[0].guid, Lfn("/grid/cms/a3"), ANN, True, 7)
    assert await store.lookup([Lfn("/grid/cms/a3")], [], ANN) == []


async def test_a_catalogue_from_before_aliases_is_brought_up_to_date(tmp_path: Path) -> None:
    old = Store(tmp_path / "c.db", metadata)
    file = new("/grid/cms/x")
    await CatalogStore(old).register(file)
    await old.write(lambda connection: run(connection, "ALTER TABLE entries DROP COLUMN linked_by"))
    await old.close()
    opened = Store(tmp_path / "c.db", metadata, MIGRATIONS)
    try:
        catalogue = CatalogStore(opened)
        await catalogue.add_alias(file.lfn, Lfn("/grid/cms/y"), ANN, False, 6)
        assert await catalogue.names_of(file.guid, ANN) == ["/grid/cms/x", "/grid/cms/y"]
    finally:
        await opened.close()


PATHS = [f"/grid/cms/{a}{b}" for a in ("a", "b") for b in ("", "/x", "/x/y", "/z")]


class CatalogueMachine(RuleBasedStateMachine):
    """Any order of changes, compared with two dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name) / "c.db", metadata)
        self.files: dict[str, str] = {}
        self.directories: set[str] = {"/grid/cms"}
        self.store.write_sync(lambda c: rows.make_directory(c, Lfn("/grid/cms"), ANN, True, 1))

    def teardown(self) -> None:
        self.store.close_sync()
        self.folder.cleanup()

    def attempt(self, function: Any) -> bool:
        try:
            self.store.write_sync(function)
        except GridError:
            return False
        return True

    @rule(path=st.sampled_from(PATHS), guid=st.sampled_from([f"{n:08x}-0000-4000-8000-000000000000" for n in range(4)]))
    def register(self, path: str, guid: str) -> None:
        parent = path.rpartition("/")[0]
        expected = self.files.get(path) == guid or (
            path not in self.files and path not in self.directories and guid not in self.files.values()
            and parent in self.directories
        )  # fmt: skip
        file = new(path, guid, make_parents=False, replica=None)
        assert self.attempt(lambda c: rows.register(c, file)) == expected
        if expected:
            self.files[path] = guid

    @rule(path=st.sampled_from(PATHS))
    def make_directory(self, path: str) -> None:
        expected = path in self.directories or (path not in self.files and path.rpartition("/")[0] in self.directories)
        assert self.attempt(lambda c: rows.make_directory(c, Lfn(path), ANN, False, 1)) == expected
        if expected:
            self.directories.add(path)

    @rule(path=st.sampled_from(PATHS))
    def remove(self, path: str) -> None:
        below = any(other.startswith(path + "/") for other in [*self.files, *self.directories])
        expected = path in self.files or (path in self.directories and not below)
        assert self.attempt(lambda c: rows.remove(c, Lfn(path), ANN, False, False)) == expected
        if expected:
            self.files.pop(path, None)
            self.directories.discard(path)

    @invariant()
    def agrees(self) -> None:
        for directory in self.directories:
            page = self.store.read_sync(lambda c, d=directory: rows.page(c, Lfn(d), "", 100))
            found = {(entry.lfn, entry.guid) for entry in page}
            expected = {(p, g) for p, g in self.files.items() if p.rpartition("/")[0] == directory}
            expected |= {(p, "") for p in self.directories if p.rpartition("/")[0] == directory}
            assert found == expected


CatalogueMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=20)
TestCatalogue = CatalogueMachine.TestCase


async def test_questions_that_come_together_are_answered_each_for_its_caller(store: CatalogStore) -> None:
    open_file, closed_file = new("/grid/cms/open/x"), new("/grid/cms/closed/x")
    for file in (open_file, closed_file):
        await store.register(file)
    await store.set_access(Lfn("/grid/cms/closed"), ANN, [Grant.of(ANN.subject, ["list"], "cms")])
    asked = [([open_file.lfn, Lfn("/grid/cms/open/none")], []), ([], [closed_file.guid, open_file.guid])]
    outcomes = await asyncio.gather(
        *(store.lookup(lfns, guids, caller) for caller in (ANN, BOB, STRANGER, None) for lfns, guids in asked),
        store.lookup([closed_file.lfn], [], ANN),
        store.lookup([closed_file.lfn, open_file.lfn], [], BOB),
        return_exceptions=True,
    )
    found = [[e.lfn for e in one] if isinstance(one, list) else type(one) for one in outcomes]
    both = ["/grid/cms/closed/x", "/grid/cms/open/x"]
    only = ["/grid/cms/open/x"]
    assert found == [only, both, only, only, only, [], only, both, both[:1], Refused]


async def test_no_question_is_answered_by_looking_at_every_row(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[tuple[str, str]] = []
    real = rows.rows

    def explained(connection: sa.Connection, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        plans.extend((str(row[-1]), sql) for row in real(connection, f"EXPLAIN QUERY PLAN {sql}", values))
        return real(connection, sql, values)

    monkeypatch.setattr(rows, "rows", explained)
    monkeypatch.setattr(access, "rows", explained)
    file = new("/grid/cms/a/b")
    assert file.replica is not None
    await store.register(file)
    await store.register(file)
    with expect(AlreadyExists, "LFN_TAKEN"):
        await store.register(new("/grid/cms/a/b"))
    second = Replica("srm://o:1/cms/2", "o:1", 6)
    await store.add_replica(file.guid, ANN, CONTENT, second)
    await store.add_replica(file.lfn, ANN, CONTENT, second)
    await store.lookup([file.lfn], [file.guid], ANN, [file.replica.surl])
    await store.page(Lfn("/grid/cms/a"), ANN, "a", 100)
    await store.replicas_below("srm://h:1/cms/", "", 100)
    await store.access(file.lfn, ANN)
    alias = Lfn("/grid/cms/a/c")
    await store.add_alias(file.lfn, alias, ANN, True, 7)
    await store.names_of(alias, ANN)
    await store.lookup([alias], [], ANN)
    await store.page(Lfn("/grid/cms/a"), ANN, "", 100)
    await store.remove_replica(file.guid, ANN, second.surl, False)
    await store.remove(file.lfn, ANN, True, False)
    await store.remove(Lfn("/grid/cms/a"), ANN, False, False)
    await store.counts()
    assert len(plans) > 30
    whole = ("SCAN f", "SCAN e", "SCAN d", "SCAN r", "SCAN s")
    assert [(plan, sql) for plan, sql in plans if plan.startswith(whole)] == []
    assert [sql for plan, sql in plans if "TEMP B-TREE" in plan and not sql.endswith("ORDER BY p.name")] == []
