from dataclasses import replace
from datetime import timedelta

import pytest

from agents.vo.issuing import Issuer, Lookup, Wanted, choose
from agents.vo.model import Aup, Member, MemberState, groups_of
from fabric.clock import to_us
from fabric.errors import GridError, InvalidRequest, Refused
from security import voms
from security.proxies import create_proxy
from security.testing import NOW, TestGrid
from security.validation import validate_client_chain

HELD = ("/cms/higgs/analysis", "/cms/Role=production", "/cms/top/Role=pilot")
HOUR = timedelta(hours=1)


def chosen(*fqans, held=HELD, order=()):
    return choose("cms", "/CN=Ada", held, Wanted(fqans, order))


def test_groups_contain_their_parents_and_those_of_roles():
    assert groups_of("cms", HELD) == ("/cms", "/cms/higgs", "/cms/higgs/analysis", "/cms/top")
    assert groups_of("cms", ()) == ("/cms",)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((), ("/cms", "/cms/higgs", "/cms/higgs/analysis", "/cms/top")),
        (("/cms",), ("/cms", "/cms/higgs", "/cms/higgs/analysis", "/cms/top")),
        (("/cms/top",), ("/cms/top", "/cms", "/cms/higgs", "/cms/higgs/analysis")),
        (("/cms/Role=production",), ("/cms/Role=production", "/cms", "/cms/higgs", "/cms/higgs/analysis", "/cms/top")),
        (("/cms/Role=NULL/Capability=NULL",), ("/cms", "/cms/higgs", "/cms/higgs/analysis", "/cms/top")),
        (("/Role=pilot",), ("/cms/top/Role=pilot", "/cms", "/cms/higgs", "/cms/higgs/analysis", "/cms/top")),
    ],
)
def test_what_was_asked_for_comes_first_then_every_group_and_no_other_role(asked, expected):
    assert chosen(*asked) == expected


def test_everything_has_roles_and_an_order_is_kept():
    everything = chosen("all")
    assert set(everything) == {"/cms", "/cms/higgs", "/cms/higgs/analysis", "/cms/top", *HELD[1:]}
    assert chosen("all", order=("/cms/top/Role=pilot", "/cms/higgs"))[:2] == ("/cms/top/Role=pilot", "/cms/higgs")
    assert chosen(order=("/cms/Role=production",))[0] == "/cms", "an order gives nothing that was not asked for"


@pytest.mark.parametrize(
    ("asked", "reason", "words"),
    [
        ("/cms/secret", "FQAN_REFUSED", "is not in the group /cms/secret"),
        ("/cms/Role=pilot", "FQAN_REFUSED", "does not hold the role pilot in /cms"),
        ("/cms/higgs/Role=production", "FQAN_REFUSED", "role production in /cms/higgs"),
        ("/Role=boss", "FQAN_REFUSED", "role boss"),
        ("/cms/higg", "FQAN_REFUSED", "/cms/higg"),
        ("/CMS", "VO_UNKNOWN", "speaks for cms"),
        ("/atlas", "VO_UNKNOWN", "speaks for cms and was asked for '/atlas'"),
        ("cms", "VO_UNKNOWN", "vomses"),
        ("/cms/", "FQAN_INVALID", "no group or role"),
        ("/cms/Role=", "FQAN_INVALID", "no group or role"),
        ("/cms/higgs;--", "FQAN_INVALID", "no group or role"),
    ],
)
def test_what_is_not_held_is_refused(asked, reason, words):
    with pytest.raises(GridError) as caught:
        chosen(asked)
    assert caught.value.reason == reason and words in caught.value.sentence


def test_too_many_wishes_are_refused():
    with pytest.raises(InvalidRequest):
        chosen(*["/cms"] * 65)


# The whole


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    found = TestGrid(tmp_path_factory.mktemp("issuing") / "grid")
    yield found
    found.close()


@pytest.fixture(scope="module")
def world(grid):
    ada = grid.user("ada")
    server = grid.host("localhost", subject="vo/cms")
    issuer = Issuer("cms", lambda: server, max_lifetime=24 * HOUR, default=12 * HOUR)
    issuer.uri = "localhost:15001"
    servers = voms.VomsDirectory({"cms": ((server.subject, grid.ca.subject),)})
    return grid, ada, issuer, servers


def member(credential, **changes):
    known = Member(str(credential.identity), "Ada", "", HELD, 1, attributes={"nickname": "ada"})
    return Lookup(replace(known, **changes), Aup())


def identity_of(grid, credential):
    return validate_client_chain(credential.pem_chain(), grid.trust, grid.policy, NOW)


def test_what_is_issued_verifies_and_says_what_was_chosen(world):
    grid, ada, issuer, servers = world
    issued = issuer.issue(identity_of(grid, ada), (), member(ada), Wanted(("/cms/Role=production",)), NOW)
    proxy = create_proxy(ada, lifetime=HOUR, now=NOW, extensions=[voms.proxy_extension([issued.encoded])])
    (found,) = voms.verify_attributes(identity_of(grid, proxy), servers, grid.trust, grid.policy, NOW)
    assert found.fqans == issued.fqans and found.fqans[0] == "/cms/Role=production"
    assert found.attributes == (voms.GenericAttribute("nickname", "ada", "cms"),)
    assert (found.not_after, issued.not_after, found.serial) == (NOW + 12 * HOUR, NOW + 12 * HOUR, issued.serial)
    # a second one through this proxy gives no more than the first had
    again = issuer.issue(identity_of(grid, proxy), (found,), member(ada), Wanted(("all",)), NOW)
    assert set(again.fqans) == set(found.fqans) and "/cms/top/Role=pilot" not in again.fqans
    assert "already has attributes" in again.warnings[0]
    plain = replace(found, fqans=("/cms",))
    with pytest.raises(Refused) as caught:
        issuer.issue(identity_of(grid, proxy), (replace(plain, fqans=("/cms/old",)),), member(ada), Wanted(), NOW)
    assert caught.value.reason == "ATTRIBUTES_WIDENED"
    other = replace(plain, vo="atlas", fqans=("/atlas",))
    assert "/cms" in issuer.issue(identity_of(grid, proxy), (other,), member(ada), Wanted(), NOW).fqans


@pytest.mark.parametrize(
    ("asked", "changes", "expected", "words"),
    [
        (0, {}, 12 * HOUR, ""),
        (3600, {}, HOUR, ""),
        (999_999_999_999, {}, 24 * HOUR, "shortened to 86400"),
        (7200, {"expires_at_us": to_us(NOW + HOUR)}, HOUR, "end at"),
    ],
)
def test_lifetimes_are_cut_with_a_warning(world, asked, changes, expected, words):
    grid, ada, issuer, _ = world
    issued = issuer.issue(identity_of(grid, ada), (), member(ada, **changes), Wanted(lifetime_s=asked), NOW)
    assert issued.not_after == NOW + expected
    assert words in " ".join(issued.warnings) and bool(issued.warnings) == bool(words)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": MemberState.REQUESTED}, "MEMBER_REQUESTED"),
        ({"state": MemberState.SUSPENDED, "reason": "x"}, "MEMBER_SUSPENDED"),
        ({"state": MemberState.EXPIRED}, "MEMBER_EXPIRED"),
        ({"expires_at_us": to_us(NOW)}, "MEMBER_EXPIRED"),
    ],
)
def test_who_is_in_no_good_standing_gets_nothing(world, changes, reason):
    grid, ada, issuer, _ = world
    with pytest.raises(Refused) as caught:
        issuer.issue(identity_of(grid, ada), (), member(ada, **changes), Wanted(), NOW)
    assert caught.value.reason == reason


def test_strangers_limited_and_independent_proxies_get_nothing(world):
    grid, ada, issuer, _ = world
    cases = (
        (ada, Lookup(None, Aup()), "NOT_A_MEMBER"),
        (ada, Lookup(member(ada).member, Aup(1, "t", 1, 1)), "AUP_UNSIGNED"),
        (grid.limited(ada), member(ada), "LIMITED_PROXY"),
        (grid.proxy(grid.limited(ada)), member(ada), "LIMITED_PROXY"),
        (grid.proxy(ada, independent=True), member(ada), "PROXY_INDEPENDENT"),
    )
    for credential, known, reason in cases:
        with pytest.raises(Refused) as caught:
            issuer.issue(identity_of(grid, credential), (), known, Wanted(), NOW)
        assert caught.value.reason == reason


def test_targets_are_in_it_and_nonsense_is_refused(world):
    grid, ada, issuer, _ = world
    made = issuer.issue(identity_of(grid, ada), (), member(ada), Wanted(targets=("ce.example.org",)), NOW)
    (entry,) = voms.parse_extension(voms.proxy_extension([made.encoded]).value)
    assert entry.targets == ("ce.example.org",)
    for wanted in (Wanted(targets=("no host",)), Wanted(targets=("",)), Wanted(lifetime_s=-1)):
        with pytest.raises(GridError):
            issuer.issue(identity_of(grid, ada), (), member(ada), wanted, NOW)
