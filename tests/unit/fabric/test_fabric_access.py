"""Lists of groups and roles in the options of agents: who is let in, and what is told to who is not."""

from __future__ import annotations

import pytest

from fabric import access
from fabric.errors import InvalidRequest, Refused
from fabric.rpc.peer import Peer, Standing

PRODUCTION, PILOT = "/cms/Role=production", "/cms/higgs/Role=pilot"


@pytest.mark.parametrize(
    ("listed", "fqans", "admitted"),
    [
        ((), (), True),
        (("/cms",), (), True),  # whoever the map file names
        ((PRODUCTION,), (PRODUCTION, "/cms"), True),
        ((PRODUCTION,), ("/cms",), False),  # role not asserted
        ((PRODUCTION,), (), False),
        ((PRODUCTION,), ("/cms/Role=productionist",), False),
        ((PRODUCTION,), ("/cms/higgs/Role=production",), False),
        ((PRODUCTION,), ("/atlas/Role=production",), False),
        (("/cms/higgs",), ("/cms/higgs",), True),
        (("/cms/higgs",), ("/cms/higgs/top",), True),
        (("/cms/higgs",), (PILOT,), True),
        (("/cms/higgs",), ("/cms/higgsino", "/cms"), False),
        (("/atlas",), ("/cms",), False),
        (("/atlas",), ("/atlas",), False),  # another VO than that of the session
        (("/atlas/Role=production", "/cms/top"), ("/cms/top",), True),
        ((PRODUCTION,), ("/cms/role=production",), False),
    ],
)
def test_who_is_let_in(listed: tuple[str, ...], fqans: tuple[str, ...], admitted: bool) -> None:
    assert access.admits(listed, "cms", fqans) == admitted


def test_a_refusal_says_what_was_shown_and_what_is_enough() -> None:
    peer = Peer("/CN=ada", None, Standing(vo="cms"), "s", False)
    access.require((), peer, "the queue")
    with pytest.raises(Refused) as caught:
        access.require(("/atlas", PRODUCTION), peer, "the queue")
    assert caught.value.reason == "ACCESS_DENIED"
    assert caught.value.sentence == (
        "the queue is kept here for /atlas, /cms/Role=production, and /CN=ada of cms shows no groups or roles; make a "
        "proxy with it: grid proxy init --voms cms:/cms/Role=production"
    )
    with pytest.raises(Refused) as caught:
        access.require(("/atlas",), peer, "the queue")
    assert "grid proxy init" not in caught.value.sentence


@pytest.mark.parametrize(
    "wrong", ["cms", "", "/", "/cms/Role=", "/cms/Role=NULL", "/cms/", "VOMS:/cms", "/cms/*", "/c\n"]
)
def test_what_is_no_fqan_is_refused_at_start(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="is no FQAN such as"):
        access.check(["/cms", wrong], "options of x")


def test_what_is_published() -> None:
    vos = ("cms", "atlas", "lhcb")
    assert access.published((), vos) == (vos, ())
    assert access.published(("/atlas", PRODUCTION, "/alice/x", "/atlas/y"), vos) == (("atlas",), (PRODUCTION,))
