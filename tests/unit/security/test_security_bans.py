"""Ban lists: what each kind of ban hits and what it leaves alone; lines that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.bans import Ban, BanKind, BanList
from security.errors import AuthorizationError, Reason, SecurityError
from security.names import DistinguishedName
from security.testing import TestGrid
from security.validation import Identity, validate_client_chain

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
JANE = "/C=XX/O=TestGrid/CN=jane"


@pytest.fixture(scope="module")
def jane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    grid = TestGrid(tmp_path_factory.mktemp("bans") / "grid", now=NOW)
    yield validate_client_chain(grid.proxy("jane").pem_chain(), grid.trust, grid.policy, NOW)
    grid.close()


def is_banned(identity: Identity, line: str, **caller: object) -> AuthorizationError | None:
    try:
        BanList.parse(line).check(identity, now=NOW, **caller)  # type: ignore[arg-type]
    except AuthorizationError as error:
        assert error.reason is Reason.BANNED
        return error
    return None


@pytest.mark.parametrize(
    "line",
    [
        JANE,
        f'"{JANE}"',
        f"subject: {JANE}",
        "pattern: /C=XX/O=TestGrid/CN=j*",
        "pattern: */CN=jan?",
        "authority: {authority}",
        "{serial} {authority}",
        "certificate: 0x{serial} {authority}",
        "vo: cms",
        "fqan: /cms",
        "fqan: /cms/production",
        "fqan: /cms/production/Role=admin",
        "network: 192.0.2.0/24",
        "network: 192.0.2.7",
        JANE + " | until 2026-11-22T12:00:01Z",
        JANE + " | by /O=Grid/CN=Root | because her laptop is gone | id 17",
    ],
)
def test_each_kind_hits(jane: Identity, line: str) -> None:
    filled = line.format(authority=jane.issuer, serial=f"{jane.serial:X}") if "{" in line else line
    if filled.startswith("pattern: */"):
        with pytest.raises(AuthorizationError):
            BanList.parse(filled)  # a pattern begins like a name
        filled = filled.replace("*/", "/*/")
    caller = {"vos": ["cms"], "fqans": ["/cms/production/Role=admin"], "address": "192.0.2.7"}
    error = is_banned(jane, filled, **caller)
    assert error is not None and "banned at this site" in error.sentence
    again = BanList.parse(filled)
    assert BanList.parse(again.emit()) == again


@pytest.mark.parametrize(
    "line",
    [
        "/C=XX/O=TestGrid/CN=janet",
        "/C=XX/O=TestGrid",
        "pattern: /C=XX/O=TestGrid/CN=J*",
        "pattern: /C=XX/O=TestGrid/CN=[j]ane",
        "authority: " + JANE + "x",
        "1 /C=XX/O=TestGrid/CN=jane2",
        "vo: atlas",
        "fqan: /cm",
        "fqan: /cms/production/Role=user",
        "fqan: /cms/prod",
        "network: 192.0.3.0/24",
        "network: 2001:db8::/32",
        JANE + " | until 2026-11-22T12:00:00Z",
    ],
)
def test_others_are_left_alone(jane: Identity, line: str) -> None:
    caller = {"vos": ["cms"], "fqans": ["/cms/production/Role=admin"], "address": "192.0.2.7"}
    assert is_banned(jane, line, **caller) is None


def test_addresses_in_both_families(jane: Identity) -> None:
    assert is_banned(jane, "network: 192.0.2.0/24", address="::ffff:192.0.2.9") is not None
    assert is_banned(jane, "network: 2001:db8::/32", address="2001:db8::1") is not None
    assert is_banned(jane, "network: 192.0.2.0/24", address="") is None
    assert is_banned(jane, "network: 192.0.2.0/24", address="unix:/x") is None


def test_roles_and_groups(jane: Identity) -> None:
    plain = "/cms/production/Role=NULL/Capability=NULL"
    assert is_banned(jane, "fqan: /cms/production", fqans=[plain]) is not None
    assert is_banned(jane, "fqan: /cms/production/Role=admin", fqans=[plain]) is None
    assert is_banned(jane, "fqan: /cms/production", fqans=["/cms/productions"]) is None


def test_the_reason_and_the_end_are_told(jane: Identity) -> None:
    error = is_banned(jane, f"{JANE} | until 2026-12-01T00:00:00Z | because her laptop is gone | id 17")
    assert error is not None
    assert "her laptop is gone" in error.sentence and "until 2026-12-01T00:00:00Z" in error.sentence
    assert error.facts["ban_id"] == "17"


def test_bans_of_other_sites_mean_nothing(jane: Identity) -> None:
    bans = BanList.parse(f"{JANE} | at RAL,CNAF")
    bans.at("CERN").check(jane, now=NOW)
    with pytest.raises(AuthorizationError):
        bans.at("RAL").check(jane, now=NOW)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense: /CN=a",
        "pattern: *",
        "pattern: /*",
        "pattern: /*=*",
        "pattern: /" + "a" * 1001,
        "vo: c ms",
        "vo: ../x",
        "fqan: cms",
        "fqan: /cms/Role=",
        "network: 0.0.0.0/0",
        "network: ::/0",
        "network: 300.1.1.1",
        "network: host.example.org",
        "certificate: " + JANE,
        "certificate: XY " + JANE,
        JANE + " | until tomorrow",
        JANE + " | until 2026-13-01T00:00:00Z",
        JANE + " | until",
        JANE + " | because a | because b",
        JANE + " | whatever x",
        JANE + " | at R AL",
        JANE + " | because " + "x" * 1001,
        "/C=XX/CN=" + "x" * 9000,
    ],
)
def test_a_line_that_is_not_understood_refuses_everybody(line: str) -> None:
    with pytest.raises(AuthorizationError) as caught:
        BanList.parse(f"# first\n{line}\n")
    assert caught.value.reason is Reason.BAN_LIST_UNREADABLE
    assert "line 2" in caught.value.sentence


@pytest.mark.parametrize("value", ["/CN=a | b", "/CN=a\nvo: cms", "", "\0"])
def test_no_value_can_become_another_line(value: str) -> None:
    with pytest.raises((ValueError, SecurityError)):
        Ban.of("subject", value)


@pytest.mark.parametrize("text", ["a | b", "| a", "a |", "line\nbreak", "x" * 1001])
def test_no_reason_can_become_another_note(text: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        Ban.of("vo", "cms", reason=text)


@given(st.sampled_from(list(BanKind)), st.text(max_size=60), st.text(max_size=30), st.text(max_size=30))
def test_what_can_be_made_can_be_read(kind: BanKind, value: str, reason: str, author: str) -> None:
    try:
        ban = Ban.of(kind, value, reason=reason.strip(), author=author.strip(), ban_id="1")
    except (ValueError, SecurityError):
        return
    (read,) = BanList.parse(ban.emit()).bans
    assert read == ban


def test_a_list_of_ten_thousand_is_looked_up_quickly(jane: Identity) -> None:
    bans = BanList().with_subjects(DistinguishedName.parse(f"/C=XX/CN=u{n}") for n in range(10_000))
    bans.check(jane, now=NOW)
    assert len(bans.subjects) == 10_000
