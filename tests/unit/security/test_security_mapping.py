from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.authorization import LocalAccount, authorize
from security.bans import BanList
from security.errors import AuthorizationError, MappingError, Reason, SecurityError
from security.gridmapdir import GridMapDir, encode_subject
from security.mapfile import GridMapFile, MapEntry, emit
from security.names import DistinguishedName
from security.testing import TestGrid
from security.validation import Identity, validate_client_chain

name = DistinguishedName.parse
JANE = name("/C=XX/O=Grid/CN=Jane Doe")


# Map file


@pytest.mark.parametrize(
    ("line", "subject", "accounts"),
    [
        ('"/C=XX/O=Grid/CN=Jane Doe" jane', "/C=XX/O=Grid/CN=Jane Doe", ("jane",)),
        ('"/C=XX/O=Grid/CN=Jane Doe" jane,atlas001', "/C=XX/O=Grid/CN=Jane Doe", ("jane", "atlas001")),
        ('"/C=XX/O=Grid/CN=Jane Doe" .atlas', "/C=XX/O=Grid/CN=Jane Doe", (".atlas",)),
        ("/C=XX/CN=plain jane", "/C=XX/CN=plain", ("jane",)),
        ('  "/CN=a"\tjane  # comment', "/CN=a", ("jane",)),
        ('"/CN=Jos\\xC3\\xA9" jose', "/CN=José", ("jose",)),
        ('"/CN=a/Email=x@y.z" a', "/CN=a/emailAddress=x@y.z", ("a",)),
        ('"/CN=a/USERID=u" a', "/CN=a/UID=u", ("a",)),
        ('"/CN=say \\"hi\\"" a', '/CN=say "hi"', ("a",)),
        ('"/CN=host/ce.example.org" a', "/CN=host/ce.example.org", ("a",)),
        ('"CN=Jane,O=Grid" a', "/O=Grid/CN=Jane", ("a",)),
    ],
)
def test_lines(line: str, subject: str, accounts: tuple[str, ...]) -> None:
    entries, problems = GridMapFile.parse(line)
    assert problems == ()
    assert (entries[0].subject, entries[0].accounts) == (name(subject), accounts)


@pytest.mark.parametrize(
    "line",
    ['"/CN=a"', '"/CN=a', "jane", '"" jane', '"/CN=a" root', '"/CN=a" jane,root', '"/CN=a" .root', '"/CN=a" ROOT',
     '"/CN=a" 0', '"/CN=a" ../etc', '"/CN=a" a b;rm', '"/CN=a" -x', "/CN=a,b", '"/CN=' + "x" * 9000 + '" a',
     '"/CN=a" ' + ",".join(f"u{i}" for i in range(99))],
)  # fmt: skip
def test_a_bad_line_maps_nobody_and_is_reported(line: str) -> None:
    entries, problems = GridMapFile.parse(f'"/CN=good" good\n{line}\n"/CN=last" last\n')
    assert [entry.accounts for entry in entries] == [("good",), ("last",)]
    assert [problem.line for problem in problems] == [2]
    assert "line 2" in problems[0].sentence


def test_a_second_line_for_a_name_is_reported() -> None:
    entries, problems = GridMapFile.parse('"/CN=a/Email=x" one\n"/CN=a/emailAddress=x" two\n')
    assert [entry.accounts for entry in entries] == [("one",)]
    assert "already mapped in line 1" in problems[0].sentence


def test_lookup_is_exact_and_structural() -> None:
    table = GridMapFile.loads('"/O=Grid/CN=jane/CN=admin" admin\n"/O=Grid/CN=jane" jane\n')
    trick = DistinguishedName((*name("/O=Grid").rdns, (("CN", "jane/CN=admin"),)))
    assert table.accounts_of(name("/O=Grid/CN=jane/CN=admin")) == ("admin",)
    assert table.accounts_of(trick) == ()
    assert table.accounts_of(name("/O=Grid/CN=JANE")) == ()
    assert table.subjects_of("jane") == (name("/O=Grid/CN=jane"),)


values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
subjects = st.lists(st.tuples(st.sampled_from(["O", "CN", "UID"]), values), min_size=1, max_size=4).map(
    lambda pairs: DistinguishedName(tuple((pair,) for pair in pairs))
)


@settings(max_examples=40)
@given(
    st.dictionaries(subjects, st.lists(st.from_regex(r"\.?[a-z][a-z0-9]{0,8}", fullmatch=True), min_size=1), max_size=5)
)
def test_what_is_written_is_read(people: dict[DistinguishedName, list[str]]) -> None:
    entries = [MapEntry(subject, tuple(dict.fromkeys(a for a in accounts))) for subject, accounts in people.items()]
    try:
        text = emit(entries)
    except MappingError:
        assert any("root" in a or "toor" in a for entry in entries for a in entry.accounts)
        return
    read, problems = GridMapFile.parse(text)
    assert problems == ()
    assert [(e.subject, e.accounts) for e in read] == [(e.subject, e.accounts) for e in entries]


@given(st.text(max_size=300))
def test_any_text_is_parsed(text: str) -> None:
    entries, problems = GridMapFile.parse(text)
    assert len(entries) + len(problems) <= text.count("\n") + 1


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "grid-mapfile"
    with pytest.raises(MappingError) as caught:
        GridMapFile.load(path)
    assert caught.value.reason == Reason.MAP_FILE_INVALID
    GridMapFile((MapEntry(JANE, ("jane", ".atlas")),)).write(path)
    assert GridMapFile.load(path).accounts_of(JANE) == ("jane", ".atlas")
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(MappingError):
        GridMapFile((MapEntry(JANE, ("root",)),)).write(path)
    assert GridMapFile.load(path).accounts_of(JANE) == ("jane", ".atlas")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(MappingError):
        GridMapFile.load(path)


# Pool accounts


@pytest.fixture
def pool(tmp_path: Path) -> GridMapDir:
    made = GridMapDir(tmp_path / "gridmapdir")
    made.create_accounts("grid", 3)
    return made


def test_same_person_same_account_until_released(pool: GridMapDir) -> None:
    first = pool.lease(JANE, "grid")
    assert pool.lease(JANE, "grid") == first == pool.account_of(JANE)
    assert os.stat(pool.directory / first).st_nlink == 2
    assert [(lease.subject, lease.account) for lease in pool.leases()] == [(str(JANE).lower(), first)]
    assert pool.release(JANE)
    assert not pool.release(JANE)
    assert pool.leases() == ()
    assert pool.account_of(JANE) is None


def test_a_lease_made_by_globus_is_honoured(pool: GridMapDir) -> None:
    os.link(pool.directory / "grid002", pool.directory / "%2fc%3dxx%2fo%3dgrid%2fcn%3djane%20doe")
    assert pool.lease(JANE, "grid") == "grid002"


def test_exhaustion_is_a_clear_refusal(pool: GridMapDir) -> None:
    assert {pool.lease(name(f"/CN={i}"), "grid") for i in range(3)} == {"grid001", "grid002", "grid003"}
    with pytest.raises(MappingError) as caught:
        pool.lease(JANE, "grid")
    assert caught.value.reason == Reason.POOL_EXHAUSTED
    assert caught.value.facts["pool"] == "grid"
    pool.release(name("/CN=1"))
    pool.lease(JANE, "grid")


def test_a_prefix_means_digits_after_it(pool: GridMapDir) -> None:
    pool.create_accounts("gridprod", 2)
    (pool.directory / "grid-admin").touch()
    assert pool.accounts("grid") == ("grid001", "grid002", "grid003")
    pool.lease(JANE, "gridprod")
    with pytest.raises(MappingError) as caught:
        pool.lease(JANE, "grid")
    assert caught.value.reason == Reason.MAP_DIRECTORY_INVALID


def test_a_lease_of_a_removed_account_is_void(pool: GridMapDir) -> None:
    first = pool.lease(JANE, "grid")
    (pool.directory / first).unlink()
    assert pool.lease(JANE, "grid") != first


@pytest.mark.parametrize("prefix", ["", "../x", ".grid", "a/b", "%2f"])
def test_bad_prefixes(pool: GridMapDir, prefix: str) -> None:
    with pytest.raises(MappingError):
        pool.lease(JANE, prefix)
    with pytest.raises(MappingError):
        pool.create_accounts(prefix, 1)


def test_names_that_no_file_can_have(pool: GridMapDir) -> None:
    with pytest.raises(MappingError) as caught:
        pool.lease(name("/CN=" + "/" * 200), "grid")
    assert caught.value.reason == Reason.MAP_DIRECTORY_INVALID
    with pytest.raises(MappingError):
        GridMapDir(pool.directory / "none").lease(JANE, "grid")


@given(subjects)
def test_lease_names_are_plain_file_names(subject: DistinguishedName) -> None:
    encoded = encode_subject(subject)
    assert set(encoded) <= set("abcdefghijklmnopqrstuvwxyz0123456789%")
    assert encoded.startswith("%2f")


def _lease_many(directory: str, worker: int, results: multiprocessing.Queue[tuple[int, str]]) -> None:
    pool = GridMapDir(directory)
    for number in range(8):
        person = (worker * 4 + number) % 16
        try:
            results.put((person, pool.lease(name(f"/CN=person {person}"), "busy")))
        except MappingError as error:
            results.put((person, error.reason.value))


def test_processes_never_share_an_account(tmp_path: Path) -> None:
    GridMapDir(tmp_path).create_accounts("busy", 16)
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[tuple[int, str]] = context.Queue()
    workers = [context.Process(target=_lease_many, args=(str(tmp_path), number, results)) for number in range(4)]
    for worker in workers:
        worker.start()
    got = [results.get(timeout=30) for _ in range(32)]
    for worker in workers:
        worker.join(30)
    held: dict[int, set[str]] = {}
    for person, account in got:
        held.setdefault(person, set()).add(account)
    assert all(len(accounts) == 1 for accounts in held.values()), held
    assert len({account for accounts in held.values() for account in accounts}) == len(held)


def test_a_lease_that_another_person_is_stepping_back_from_is_waited_for(tmp_path: Path) -> None:
    """Two people took one account at once: nobody gets it before one of them has stepped back."""
    pool = GridMapDir(tmp_path)
    pool.create_accounts("busy", 2)
    ada, bob = name("/CN=ada"), name("/CN=bob")
    account = tmp_path / "busy001"
    links = [tmp_path / encode_subject(person) for person in (ada, bob)]
    for link in links:
        os.link(account, link)
    with pytest.raises(MappingError) as caught:
        pool.lease(ada, "busy")
    assert caught.value.reason == Reason.MAP_DIRECTORY_INVALID
    assert "leased to somebody else as well" in caught.value.sentence
    links[0].unlink()  # ada's process steps back
    assert (pool.lease(bob, "busy"), pool.lease(ada, "busy")) == ("busy001", "busy002")


# Bans and login


@pytest.fixture
def jane(grid: TestGrid) -> Identity:
    return identity(grid, "jane")


def identity(grid: TestGrid, person: str, *, limited: bool = False) -> Identity:
    proxy = grid.proxy(person, limited=limited)
    return validate_client_chain(proxy.pem_chain(), grid.trust, grid.policy, grid.now)


TABLE = GridMapFile.loads(
    '"/C=XX/O=TestGrid/CN=jane" jane,atlas\n"/C=XX/O=TestGrid/CN=carol" .grid\n"/C=XX/O=TestGrid/CN=both" own,.grid\n'
)


def test_login(grid: TestGrid, jane: Identity, pool: GridMapDir) -> None:
    assert authorize(jane, bans=BanList(), map_file=TABLE) == LocalAccount("jane")
    assert authorize(jane, bans=BanList(), map_file=TABLE, requested_account="atlas").name == "atlas"
    found = authorize(jane, bans=BanList(), map_file=TABLE, account_lookup=lambda _: (1001, 1001))
    assert (found.uid, found.gid) == (1001, 1001)
    carol = identity(grid, "carol")
    account = authorize(carol, bans=BanList(), map_file=TABLE, pool=pool)
    assert account == LocalAccount("grid001", pool="grid")
    again = authorize(carol, bans=BanList(), map_file=TABLE, pool=pool, requested_account="grid001")
    assert again == account


def refused(reason: Reason, who: Identity, **options: object) -> None:
    arguments: dict[str, object] = {"bans": BanList(), "map_file": TABLE, **options}
    with pytest.raises(SecurityError) as caught:
        authorize(who, **arguments)  # type: ignore[arg-type]
    assert caught.value.reason == reason


def test_login_refusals(grid: TestGrid, jane: Identity, pool: GridMapDir) -> None:
    refused(Reason.NOT_MAPPED, identity(grid, "stranger"))
    refused(Reason.NOT_MAPPED, jane, requested_account="carol")
    refused(Reason.NOT_MAPPED, jane, requested_account="root")
    refused(Reason.NOT_MAPPED, identity(grid, "carol"), requested_account="grid002", pool=pool)
    refused(Reason.NOT_MAPPED, identity(grid, "carol"), requested_account=".grid", pool=pool)
    refused(Reason.MAP_DIRECTORY_INVALID, identity(grid, "carol"))
    refused(Reason.ACCOUNT_UNKNOWN, jane, account_lookup=lambda _: None)
    refused(Reason.ACCOUNT_UNKNOWN, jane, account_lookup=lambda _: (0, 0))
    refused(Reason.LIMITED_PROXY, identity(grid, "jane", limited=True))
    limited = identity(grid, "jane", limited=True)
    assert authorize(limited, bans=BanList(), map_file=TABLE, accept_limited=True).name == "jane"


def test_bans_of_people_and_certificates(grid: TestGrid, jane: Identity) -> None:
    end_entity, proxy = jane.certificates[-1], jane.certificates[0]
    for bans in (
        BanList.parse("/C=XX/O=TestGrid/CN=jane\n"),
        BanList.parse('# note\n\n"/C=XX/O=TestGrid/CN=jane"\n'),
        BanList.parse(f"{end_entity.serial_number:X} {grid.ca.subject}"),
        BanList.parse(f"0x{proxy.serial_number:x} /C=XX/O=TestGrid/CN=jane"),
        BanList().with_subjects([jane.subject]),
        BanList().with_serial(grid.ca.subject, end_entity.serial_number),
    ):
        refused(Reason.BANNED, jane, bans=bans)
        refused(Reason.BANNED, jane, bans=BanList.parse(bans.emit()))
    authorize(jane, bans=BanList().with_subjects([jane.subject]).without(jane.subject), map_file=TABLE)
    authorize(jane, bans=BanList.parse(f"{end_entity.serial_number:X} /CN=Other"), map_file=TABLE)
    refused(Reason.BANNED, replace(jane, is_limited=True), bans=BanList.parse(str(jane.subject)))  # bans come first


@pytest.mark.parametrize("text", ["nonsense", "/CN=a\nXYZ /CN=b", "12 nobody", "/CN=" + "x" * 9000])
def test_a_ban_list_with_a_bad_line_refuses_everybody(text: str) -> None:
    with pytest.raises(AuthorizationError) as caught:
        BanList.parse(text)
    assert caught.value.reason == Reason.BAN_LIST_UNREADABLE


def test_a_missing_ban_list_refuses_everybody(tmp_path: Path) -> None:
    with pytest.raises(AuthorizationError) as caught:
        BanList.load(tmp_path / "bans")
    assert caught.value.reason == Reason.BAN_LIST_UNREADABLE
    BanList().with_subjects([JANE]).write(tmp_path / "bans")
    assert BanList.load(tmp_path / "bans").subjects == {JANE}
