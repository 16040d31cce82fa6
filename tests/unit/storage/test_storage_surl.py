from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.storage.surl import Surl, parse_surl
from fabric.errors import InvalidRequest

ID = "0123456789abcdef0123456789abcdef"


def test_a_surl_round_trips() -> None:
    text = f"srm://se.cern.ch:40123/cms/{ID}"
    assert parse_surl(text) == Surl("se.cern.ch", 40123, "cms", ID)
    assert str(parse_surl(text)) == text


def test_an_ipv6_host_keeps_its_brackets_in_the_surl_only() -> None:
    surl = parse_surl(f"srm://[::1]:8443/atlas.ch/{ID}")
    assert (str(surl), surl.rpc_host) == (f"srm://[::1]:8443/atlas.ch/{ID}", "::1")


@pytest.mark.parametrize(
    "text",
    [
        "", "srm://", f"http://h:1/cms/{ID}", f"srm://h/cms/{ID}", f"srm://h:0/cms/{ID}", f"srm://h:70000/cms/{ID}",
        f"srm://h:1/{ID}", f"srm://h:1/cms/{ID}/x", f"srm://h:1/cms/../{ID}", f"srm://h:1/cms/{ID[:-1]}",
        f"srm://h:1/cms/{ID}\n", f"srm://h:1/CMS/{ID}", f"srm://h:1/cms/{ID.upper()}", f"srm://h h:1/cms/{ID}",
        f"srm://h:1/cms/{ID}?x=1", f"srm://{'h' * 600}:1/cms/{ID}", f"srm://h:１/cms/{ID}",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_surl(text)
    assert caught.value.reason == "SURL_INVALID"


@given(st.text(max_size=80))
def test_no_text_parses_to_something_that_is_not_itself(text: str) -> None:
    try:
        assert str(parse_surl(text)) == text
    except InvalidRequest:
        pass
