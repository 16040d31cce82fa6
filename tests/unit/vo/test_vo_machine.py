from dataclasses import replace

import pytest

from agents.vo import machine
from agents.vo.machine import Approved, AupSigned, EndReached, Renewed, Restored, Suspended, apply, objection
from agents.vo.model import Aup, Member, MemberState
from fabric.errors import Conflict, InvalidRequest

S = MemberState
NOW = 1_700_000_000_000_000
HOUR = 3_600_000_000
NONE = Aup()
POLICY = Aup(2, "be nice", NOW - HOUR, NOW)
ADA = Member("/O=Grid/CN=Ada", "Ada", "", ("/cms/higgs",), NOW - HOUR, aup_version=2)

EVENTS = (AupSigned(2), Approved(), Suspended("stolen key"), Restored(), Renewed(), EndReached())
ALLOWED = {
    (S.REQUESTED, AupSigned): S.REQUESTED,
    (S.REQUESTED, Approved): S.APPROVED,
    (S.APPROVED, AupSigned): S.APPROVED,
    (S.APPROVED, Suspended): S.SUSPENDED,
    (S.APPROVED, Renewed): S.APPROVED,
    (S.APPROVED, EndReached): S.EXPIRED,
    (S.SUSPENDED, AupSigned): S.SUSPENDED,
    (S.SUSPENDED, Suspended): S.SUSPENDED,
    (S.SUSPENDED, Restored): S.APPROVED,
    (S.SUSPENDED, Renewed): S.SUSPENDED,
    (S.EXPIRED, AupSigned): S.EXPIRED,
    (S.EXPIRED, Suspended): S.SUSPENDED,
    (S.EXPIRED, Renewed): S.APPROVED,
}


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_every_state_and_event(state, event):
    member = replace(ADA, state=state)
    after = ALLOWED.get((state, type(event)))
    if after is not None:
        assert apply(member, event, POLICY, NOW).state is after
        return
    with pytest.raises(Conflict) as caught:
        apply(member, event, POLICY, NOW)
    assert caught.value.reason == "MEMBER_STATE" and state.value in caught.value.sentence


def test_nobody_is_approved_who_has_not_signed():
    asked = replace(ADA, state=S.REQUESTED, aup_version=1)
    with pytest.raises(Conflict, match="version 2 of the acceptable use policy") as caught:
        apply(asked, Approved(), POLICY, NOW)
    assert caught.value.reason == "AUP_UNSIGNED"
    signed = apply(asked, AupSigned(2), POLICY, NOW)
    assert (signed.aup_version, signed.aup_signed_at_us) == (2, NOW)
    assert apply(signed, Approved(NOW + HOUR), POLICY, NOW).expires_at_us == NOW + HOUR


@pytest.mark.parametrize("version", [0, 1, 3, -2])
def test_only_the_current_version_can_be_signed(version):
    with pytest.raises(Conflict) as caught:
        apply(ADA, AupSigned(version), POLICY, NOW)
    assert caught.value.reason == "AUP_VERSION" and "version 2" in caught.value.sentence


def test_a_vo_without_a_policy_has_nothing_to_sign():
    with pytest.raises(Conflict, match="current one is none"):
        apply(ADA, AupSigned(0), NONE, NOW)


@pytest.mark.parametrize("reason", ["", "   ", "x" * 301, "bell\x07"])
def test_a_suspension_needs_a_reason_that_can_be_shown(reason):
    with pytest.raises(InvalidRequest) as caught:
        apply(ADA, Suspended(reason), NONE, NOW)
    assert caught.value.reason == "REASON_INVALID"


@pytest.mark.parametrize("event", [Renewed(NOW), Renewed(1)])
def test_an_end_in_the_past_is_refused(event):
    with pytest.raises(InvalidRequest) as caught:
        apply(ADA, event, NONE, NOW)
    assert caught.value.reason == "LIFETIME_INVALID"


def test_restoring_takes_the_reason_away():
    assert apply(apply(ADA, Suspended("a  b"), NONE, NOW), Restored(), NONE, NOW).reason == ""
    assert apply(ADA, Suspended("a  b"), NONE, NOW).reason == "a b"


@pytest.mark.parametrize(
    ("changes", "aup", "reason", "words"),
    [
        ({"state": S.REQUESTED}, NONE, "MEMBER_REQUESTED", "no manager has approved"),
        ({"state": S.SUSPENDED, "reason": "stolen key"}, NONE, "MEMBER_SUSPENDED", "stolen key"),
        ({"state": S.EXPIRED, "expires_at_us": NOW - 1}, NONE, "MEMBER_EXPIRED", "2023-11-14T22:13:19"),
        ({"expires_at_us": NOW}, NONE, "MEMBER_EXPIRED", "ended"),  # before the sweep has seen it
        ({"aup_version": 1}, POLICY, "AUP_UNSIGNED", "signed only version 1"),
        ({"aup_version": 0}, POLICY, "AUP_UNSIGNED", "has not signed it"),
        ({"aup_version": 0}, replace(POLICY, required_at_us=NOW + HOUR), "AUP_UNSIGNED", "version 2"),
        ({"state": S.SUSPENDED, "reason": "r", "aup_version": 0}, POLICY, "MEMBER_SUSPENDED", "r"),
    ],
)
def test_who_is_in_no_good_standing_hears_why(changes, aup, reason, words):
    refusal = objection("cms", replace(ADA, **changes), aup, NOW)
    assert refusal is not None and refusal.reason == reason and words in refusal.sentence
    assert ADA.subject in refusal.sentence


def test_good_standing_and_when_it_ends():
    assert objection("cms", ADA, POLICY, NOW) is None
    assert objection("cms", replace(ADA, expires_at_us=NOW + 1), NONE, NOW) is None
    grace = replace(POLICY, required_at_us=NOW + HOUR)
    older = replace(ADA, aup_version=1)
    assert objection("cms", older, grace, NOW) is None, "an older signature is good until the grace ends"
    assert machine.good_until_us(older, grace) == NOW + HOUR
    assert machine.good_until_us(replace(older, expires_at_us=NOW + 5), grace) == NOW + 5
    assert machine.good_until_us(ADA, POLICY) == 0
