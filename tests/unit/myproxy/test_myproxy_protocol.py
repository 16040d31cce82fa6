from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.myproxy import protocol
from agents.myproxy.protocol import Command, Listed, Proof, Request
from fabric.errors import InvalidRequest
from security import proxies
from security.testing import TestGrid

GOOD = b"VERSION=MYPROXYv2\nCOMMAND=0\nUSERNAME=ada\nPASSPHRASE=secret\nLIFETIME=3600\n"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    grid = TestGrid(tmp_path_factory.mktemp("grid"), key_type="ec-p256")
    yield proxies.create_proxy(
        grid.user("/C=XX/O=TestGrid/OU=Users/CN=ada"), lifetime=timedelta(hours=1), now=grid.now
    ).certificates
    grid.close()


def refusal(text: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        protocol.parse_request(text)
    assert "secret" not in caught.value.sentence
    return caught.value.sentence


def test_a_request_as_the_c_clients_write_it():
    text = GOOD + b"RETRIEVER=*/CN=portal\nCRED_NAME=second\nCRED_DESC=for the portal\nFUTURE=1\n"
    request = protocol.parse_request(text)
    assert (request.command, request.username, request.lifetime_s) == (Command.GET, "ada", 3600)
    assert (request.retrievers, request.name, request.description) == ("*/CN=portal", "second", "for the portal")
    assert request.passphrase == b"secret" and "secret" not in repr(request)


def test_requests_come_back_as_they_were():
    request = Request(
        Command.CHANGE_CRED_PASSPHRASE, "/C=XX/CN=ada", 60, "a.b", "text", "*", "/x", "/y", b"old=1", b"n\xe9w"
    )
    encoded = protocol.encode_request(request)
    assert protocol.request_end(encoded) == len(encoded) - 1
    assert protocol.parse_request(encoded[:-1]) == request


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((b"VERSION=MYPROXYv2\n", b""), "VERSION is missing"),
        ((b"MYPROXYv2", b"MYPROXYv1"), "speaks MYPROXYv2, not 'MYPROXYv1'"),
        ((b"COMMAND=0\n", b""), "COMMAND is missing"),
        ((b"COMMAND=0", b"COMMAND=8"), "COMMAND 8 is not known"),
        ((b"COMMAND=0", b"COMMAND=-1"), "COMMAND is no number"),
        ((b"COMMAND=0", b"COMMAND=\xd9\xa1"), "COMMAND is no number"),
        ((b"USERNAME=ada\n", b""), "USERNAME is missing"),
        ((b"USERNAME=ada", b"USERNAME="), "USERNAME is empty"),
        ((b"USERNAME=ada", b"USERNAME=a\rb"), "cannot be printed"),
        ((b"USERNAME=ada", b"USERNAME=\xff"), "not UTF-8"),
        ((b"USERNAME=ada", b"USERNAME=" + 256 * b"a"), "longer than 255"),
        ((b"LIFETIME=3600", b"LIFETIME=99999999999"), "LIFETIME is no number"),
        ((b"LIFETIME=3600", b"LIFETIME="), "LIFETIME is no number"),
        ((b"PASSPHRASE=secret", b"PASSPHRASE=" + 205 * b"secret"), "at most 1024 bytes"),
        ((b"PASSPHRASE=secret", b"PASSPHRASE=secret\nPASSPHRASE=secret2"), "PASSPHRASE is there twice"),
        ((b"LIFETIME=3600", b"LIFETIME=1\nCRED_NAME=a,b"), "name of a credential"),
        ((b"LIFETIME=3600", b"LIFETIME=1\nCRED_NAME=" + 81 * b"a"), "longer than 80"),
        ((b"LIFETIME=3600", b"LIFETIME=1\nRENEWER=" + 1025 * b"*"), "longer than 1024"),
    ],
)
def test_malformed_requests_are_refused_and_quote_no_secret(change, words):
    assert words in refusal(GOOD.replace(*change))


def test_where_a_request_ends():
    assert protocol.request_end(b"") is None
    assert protocol.request_end(GOOD[:20]) is None
    assert protocol.request_end(GOOD + b"\0next") == len(GOOD)
    assert protocol.request_end(GOOD) == len(GOOD)  # a client that sends no NUL
    for endless in (b"a" * 20_000, b"a" * 20_000 + b"\0"):
        with pytest.raises(InvalidRequest, match="longer than 16384"):
            protocol.request_end(endless)


@given(st.binary(max_size=300))
def test_no_bytes_do_harm(data):
    for end in (protocol.request_end, protocol.csr_end, protocol.chain_end, protocol.proof_end):
        try:
            at = end(data)
            assert at is None or 0 <= at <= len(data)
            if at is not None and end is protocol.chain_end:
                protocol.parse_chain(data[:at])
            if at is not None and end is protocol.proof_end:
                protocol.parse_proof(data[:at])
        except InvalidRequest:
            pass
    try:
        protocol.parse_request(data)
    except InvalidRequest:
        pass


@given(st.text(max_size=200))
def test_any_sentence_is_one_error_that_clients_can_read(sentence):
    encoded = protocol.error(sentence)
    assert encoded.endswith(b"\n\0") and encoded.count(b"\0") == 1 + sentence.count("\0")
    for keyword in (b"VERSION=", b"RESPONSE=", b"ERROR="):
        assert encoded.count(keyword) == 1


def test_an_error_cannot_be_made_into_a_yes():
    encoded = protocol.error("user 'x\nRESPONSE=0' ERROR=y AUTHORIZATION_DATA=z")
    assert encoded.decode().split("\n")[:2] == ["VERSION=MYPROXYv2", "RESPONSE=1"]
    assert protocol.parse_response(encoded[:-1]).kind == 1


def test_responses_are_read():
    assert protocol.parse_response(protocol.ok()[:-1]).kind == 0
    assert protocol.parse_response(protocol.challenge("abc")[:-1]).nonce == "abc"
    two = protocol.parse_response(b"VERSION=MYPROXYv2\nRESPONSE=1\nERROR=one\nERROR=two\n")
    assert (two.kind, two.error) == (1, "one two")
    old = protocol.parse_response(b"VERSION=MYPROXYv2\nRESPONSE=2\nAUTHORIZATION_DATA=X509_certificate:abc\n")
    assert old.nonce == ""  # SHA-1 is not signed
    for wrong in (b"", b"HTTP/1.1 400", b"VERSION=MYPROXYv2\n", b"VERSION=MYPROXYv2\nRESPONSE=7\n"):
        with pytest.raises(InvalidRequest):
            protocol.parse_response(wrong)


def test_a_listing_names_the_default_credential_first():
    named = Listed("portal", "a text", 1, 2, "/CN=ada", retrievers="*/CN=portal")
    text = protocol.listing([named, Listed("", "", 3, 4, "/CN=ada", renewers="*")]).decode()
    assert "CRED_NAME" not in text and "CRED_START_TIME=3\n" in text and "CRED_RENEWER=*\n" in text
    assert "CRED_portal_DESC=a text\n" in text and "CRED_portal_RETRIEVER=*/CN=portal\n" in text
    assert text.endswith("ADDL_CREDS=portal\n\0")
    assert "CRED_NAME=portal\n" in protocol.listing([named]).decode()


def test_chains_and_proofs_come_back_in_any_pieces(chain):
    encoded = protocol.encode_chain(chain)
    proof = protocol.encode_proof(Proof(chain, b"signature"))
    for end, message in ((protocol.chain_end, encoded), (protocol.proof_end, proof)):
        assert end(message + b"next") == len(message)
        for cut in range(0, len(message), 37):
            assert end(message[:cut]) is None
    assert protocol.parse_chain(encoded) == chain
    assert protocol.parse_proof(proof) == Proof(chain, b"signature")


@pytest.mark.parametrize(
    "data", [b"\0", b"\x11", b"\x01\x31\x00", b"\x01\x30\x84\xff\xff\xff\xff", b"\x01\x30\x80", b"\x01" + b"0" * 70_000]
)
def test_impossible_chains_are_refused_at_once(data):
    with pytest.raises(InvalidRequest) as caught:
        protocol.chain_end(data)
    assert caught.value.reason == "CHAIN_MALFORMED"


def test_a_certificate_of_no_known_version_is_refused(chain):
    encoded = protocol.encode_chain(chain)
    with pytest.raises(InvalidRequest, match="certificate 1 cannot be read"):
        protocol.parse_chain(encoded.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1))


def test_a_long_chain_is_not_waited_for():
    with pytest.raises(InvalidRequest, match="longer than 65536"):
        protocol.chain_end(b"\x02\x30\x83\x02\x00\x00")


def test_certificates_that_are_none():
    with pytest.raises(InvalidRequest, match="certificate 1 cannot be read"):
        protocol.parse_chain(b"\x01\x30\x02\x05\x00")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x02\0\0\0\0\0\0\x09", "give that proxy with -a"),  # SHA-1
        (b"\x01\0\0\0password\0", "give that proxy with -a"),
        (b"\x04\0\0\0\0\0\0\0", "impossible length"),
        (b"\x04\0\0\0\xff\xff\xff\xff", "impossible length"),
    ],
)
def test_proofs_of_another_kind_are_refused(data, words):
    with pytest.raises(InvalidRequest, match=words):
        protocol.proof_end(data)


def test_requests_for_certificates_are_bounded():
    assert protocol.csr_end(b"\x30\x82\x01") is None
    for wrong in (b"\x31\x00", b"\x30\x82\xff\xff", b"\x30\x82" + b"\x20" * 20_000):
        with pytest.raises(InvalidRequest) as caught:
            protocol.csr_end(wrong)
        assert caught.value.reason == "REQUEST_MALFORMED"
