import pytest

from fabric.member_lists import hold
from security.names import DistinguishedName

PEOPLE = [DistinguishedName.parse(f"/O=Grid/CN=person {number:03d}") for number in range(100)]


@pytest.mark.parametrize(
    ("after", "share", "least", "lost"),
    [
        (PEOPLE, 0.2, 20, 0),
        (PEOPLE[20:], 0.2, 20, 0),  # exactly the share
        (PEOPLE[21:], 0.2, 20, 21),
        (PEOPLE[21:], 0.2, 22, 0),  # few enough to be a decision
        ([], 0.2, 20, 100),
        ([], 1.0, 20, 0),  # never
        (PEOPLE[1:], 0.0, 1, 1),
        ([*PEOPLE[50:], *(DistinguishedName.parse(f"/O=New/CN={n}") for n in range(100))], 0.2, 20, 50),
    ],
)
def test_a_list_that_loses_too_many_is_held(after, share, least, lost):
    found = hold(PEOPLE, after, share=share, least=least)
    assert (len(found.lost) if found else 0) == lost


def test_who_would_lose_access_is_named_and_a_confirmation_is_for_these_only():
    found, other = hold(PEOPLE, PEOPLE[:40]), hold(PEOPLE, PEOPLE[:41])
    assert found and other and found.digest != other.digest
    assert found.names.startswith("/O=Grid/CN=person 040, ") and found.names.endswith(" and 55 more")
    assert (found.before, found.after) == (100, 40)
    assert hold(PEOPLE, PEOPLE[:40][::-1]) == found, "the order of a list says nothing"


def test_nobody_before_is_nobody_lost():
    assert hold([], []) is None and hold([], PEOPLE) is None
