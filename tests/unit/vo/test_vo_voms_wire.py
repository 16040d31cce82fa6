import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.vo import voms_wire as wire
from agents.vo.issuing import Wanted
from fabric.errors import Defect, InvalidRequest, NotFound, Refused, Unauthenticated

C_CLIENT = (
    b"0GET /generate-ac?fqans=/cms,/cms/higgs/Role=pilot&lifetime=43200&order=/cms/higgs:pilot HTTP/1.0\n"
    b"User-Agent: voms APIs 2.0\nAccept: */*\nHost: localhost:15000\n\n"
)
JAVA_CLIENT = b"GET /generate-ac?lifetime=3600&fqans=%2Fcms HTTP/1.1\r\nHost: x\r\n\r\n"
LEGACY = (
    b'0<?xml version="1.0" encoding="US-ASCII"?><voms><command>G/cms</command><command>B/cms/higgs:pilot</command>'
    b"<order>/cms:prod,/cms/higgs</order><base64>1</base64><version>4</version><lifetime>60</lifetime></voms>"
)


def test_what_the_c_client_sends():
    request = wire.parse(C_CLIENT)
    assert request.wanted == Wanted(("/cms", "/cms/higgs/Role=pilot"), ("/cms/higgs/Role=pilot",), 43200)
    assert not request.legacy and not wire.speaks_legacy(C_CLIENT)


def test_what_the_java_client_sends():
    assert wire.parse(JAVA_CLIENT).wanted == Wanted(("/cms",), (), 3600)


def test_what_clients_before_version_2_send():
    request = wire.parse(LEGACY)
    assert request.wanted == Wanted(("/cms", "/cms/higgs/Role=pilot"), ("/cms/Role=prod", "/cms/higgs"), 60)
    assert request.legacy and wire.speaks_legacy(LEGACY)


@pytest.mark.parametrize(
    ("command", "fqans", "listing"),
    [
        ("A", ("all",), False),
        ("N", ("all",), True),
        ("Rpilot", ("/Role=pilot",), False),
        ("/cms", ("/cms",), False),
    ],
)
def test_old_commands(command, fqans, listing):
    request = wire.parse(f"<voms><command>{command}</command><lifetime></lifetime></voms>".encode())
    assert (request.wanted.fqans, request.listing) == (fqans, listing)


@pytest.mark.parametrize("data", [C_CLIENT, JAVA_CLIENT, LEGACY], ids=["c", "java", "legacy"])
def test_a_request_is_complete_at_its_last_byte_and_not_before(data):
    assert wire.is_complete(data)
    assert not any(wire.is_complete(data[:length]) for length in range(len(data)))


@pytest.mark.parametrize(
    "data",
    [
        b"POST /generate-ac HTTP/1.1\n\n",
        b"GET /generate-ac\n\n",
        b"GET /other HTTP/1.1\n\n",
        b"GET /generate-ac?fqans HTTP/1.1\n\n",
        b"GET /generate-ac?lifetime=soon HTTP/1.1\n\n",
        b"GET /generate-ac?lifetime=99999999999999 HTTP/1.1\n\n",
        b"GET /generate-ac?fqans=\xff HTTP/1.1\n\n",
        b"<voms></voms>",
        b"<voms><command>X</command></voms>",
        b"<voms><command>G</command></voms>",
        b"<voms><command><command>A</command></command></voms>",
        b"<voms><command>A</command><evil>x</evil></voms>",
        b'<!DOCTYPE x [<!ENTITY a "b">]><voms><command>&a;</command></voms>',
        b"<voms><command>&a;</command></voms>",
        b"<voms><command>A</command></voms><voms></voms>x",
        b"<voms><lifetime>1e9</lifetime><command>A</command></voms>",
        b"x" * (wire.MAX_REQUEST_BYTES + 1),
    ],
)
def test_what_cannot_be_understood_is_refused(data):
    with pytest.raises(InvalidRequest) as caught:
        wire.parse(data)
    assert caught.value.reason == "VOMS_REQUEST_INVALID"


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"hello", b"0\0\0", b"GET" + b" " * wire.MAX_REQUEST_BYTES])
def test_what_will_never_be_a_request_is_not_waited_for(data):
    with pytest.raises(InvalidRequest):
        wire.is_complete(data)


@given(st.binary(max_size=300))
def test_garbage_is_a_typed_refusal(data):
    for function in (wire.is_complete, wire.parse):
        try:
            function(data)
        except InvalidRequest as error:
            assert error.reason == "VOMS_REQUEST_INVALID"


def test_success_in_both_protocols():
    new, old = wire.parse(C_CLIENT), wire.parse(LEGACY)
    answer = wire.success(new, b"\x30\x03abc" * 40, ("/cms",), ["short & sweet"])
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), "the C client compares these 12 characters"
    assert wire.parse_answer(answer) == wire.Answer(b"\x30\x03abc" * 40, (), ("short & sweet",))
    answer = wire.success(old, b"\x30\x03abc", ("/cms",), [])
    assert answer.startswith(b"<?xml") and b"<error>" not in answer
    assert b"\n</ac>" in answer, "without a line feed the C client takes it for its own alphabet"
    listing = wire.parse(b"<voms><command>N</command></voms>")
    assert base64.encodebytes(b"/cms\n/cms/x\n") in wire.success(listing, b"x", ("/cms", "/cms/x"), [])


@pytest.mark.parametrize(
    ("error", "status", "code", "number"),
    [
        (Refused("NOT_A_MEMBER", "who <are> you"), b"403", b"NoSuchUser", b"1001"),
        (Refused("MEMBER_SUSPENDED", "s"), b"403", b"SuspendedUser", b"1004"),
        (Refused("AUP_UNSIGNED", "s"), b"403", b"SuspendedUser", b"1004"),
        (Refused("BANNED", "s"), b"403", b"SuspendedUser", b"1004"),
        (Refused("FQAN_REFUSED", "s"), b"400", b"BadRequest", b"1001"),
        (InvalidRequest("VOMS_REQUEST_INVALID", "s"), b"400", b"BadRequest", b"1005"),
        (Unauthenticated("CERTIFICATE_REVOKED", "s"), b"403", b"InternalError", b"1006"),
        (NotFound("X", "s"), b"500", b"InternalError", b"1006"),
        (Defect("DEFECT", "s"), b"500", b"InternalError", b"1006"),
    ],
    ids=lambda value: getattr(value, "reason", None),
)
def test_refusals_in_both_protocols(error, status, code, number):
    answer = wire.refusal(error, legacy=False)
    assert answer.startswith(b"HTTP/1.1 " + status) and b"<code>" + code + b"</code>" in answer
    assert wire.parse_answer(answer) == wire.Answer(b"", (error.sentence,), ())
    old = wire.refusal(error, legacy=True)
    assert b"<number>" + number + b"</number>" in old
    assert b"<ac>QQ==\n</ac>" in old, "the C client shows errors only beside an attribute certificate"


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\n\r\n<voms></voms>", b"<ac>a</ac>", b"\xff\xfe"])
def test_answers_that_say_nothing_are_refused(data):
    with pytest.raises(InvalidRequest) as caught:
        wire.parse_answer(data)
    assert caught.value.reason == "VOMS_ANSWER_INVALID"
