from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from security.errors import CredentialError, Reason
from security.names import MAX_NAME_LENGTH, MAX_RDNS, DistinguishedName

parse = DistinguishedName.parse


@pytest.mark.parametrize(
    ("text", "rdns"),
    [
        ("/C=XX/O=Grid/CN=Jane Doe", [("C", "XX"), ("O", "Grid"), ("CN", "Jane Doe")]),
        ("/O=Grid/CN=host/ce.cern.ch", [("O", "Grid"), ("CN", "host/ce.cern.ch")]),
        ("/O=Grid/CN=a/b/c=d/CN=e", [("O", "Grid"), ("CN", "a/b"), ("C", "d"), ("CN", "e")]),
        ("/O=Grid/CN=http://x/y=z", [("O", "Grid"), ("CN", "http://x/y=z")]),
        ("/DC=org/DC=cern/UID=1/CN=x", [("DC", "org"), ("DC", "cern"), ("UID", "1"), ("CN", "x")]),
        ("/O=Grid/USERID=jane", [("O", "Grid"), ("UID", "jane")]),
        ("/O=Grid/Email=a@b.c", [("O", "Grid"), ("emailAddress", "a@b.c")]),
        ("/O=Grid/E=a@b.c", [("O", "Grid"), ("emailAddress", "a@b.c")]),
        ("/o=Grid/cn=x", [("O", "Grid"), ("CN", "x")]),
        ("/CN=Jos\\xC3\\xA9", [("CN", "José")]),
        ("/CN=\\xE9", [("CN", "é")]),
        ("/O=Grid/CN=host\\/ce.cern.ch", [("O", "Grid"), ("CN", "host/ce.cern.ch")]),
        ("/O=Grid/CN=jane\\/CN=admin", [("O", "Grid"), ("CN", "jane/CN=admin")]),
        ("/CN=a\\\\/CN=b", [("CN", "a\\"), ("CN", "b")]),
        ("/CN=a\\b", [("CN", "a\\b")]),
        ("/CN=a=b", [("CN", "a=b")]),
        ("/CN=", [("CN", "")]),
        ("/1.2.3.4=x", [("1.2.3.4", "x")]),
        ("/2.5.4.3=x", [("CN", "x")]),
        ("CN=Jane Doe,O=Grid,C=XX", [("C", "XX"), ("O", "Grid"), ("CN", "Jane Doe")]),
        ("CN=Doe\\, Jane, O=Grid", [("O", "Grid"), ("CN", "Doe, Jane")]),
        ('CN="Doe, Jane",O=Grid', [("O", "Grid"), ("CN", "Doe, Jane")]),
        ("CN=Jos\\C3\\A9", [("CN", "José")]),
        ("CN=a/b", [("CN", "a/b")]),
    ],
)
def test_parse(text: str, rdns: list[tuple[str, str]]) -> None:
    assert parse(text).rdns == tuple((pair,) for pair in rdns)


@pytest.mark.parametrize(
    "text",
    ["", "x", "/", "/CN", "/XX=1", "CN", "CN=a,", "CN=a,,O=b", 'CN="a', 'CN="a"b', "CN=a\\", "CN=#0402", "CN=<a>",
     "/CN=" + "x" * MAX_NAME_LENGTH, "/CN=x" * (MAX_RDNS + 1), "/CN=" + "y" * 1025, "/CN=a\0b", "//CN=a"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(CredentialError) as caught:
        parse(text)
    assert caught.value.reason == Reason.NAME_MALFORMED


values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
attributes = st.tuples(st.sampled_from(["C", "O", "OU", "CN", "DC", "UID", "emailAddress", "1.2.3.4"]), values)
names = st.lists(st.lists(attributes, min_size=1, max_size=2).map(tuple), min_size=1, max_size=6).map(
    lambda rdns: DistinguishedName(tuple(rdns))
)


@given(names)
def test_both_spellings_come_back(name: DistinguishedName) -> None:
    assert parse(str(name)) == name
    assert parse(name.rfc4514()) == name
    assert str(name).isascii()
    assert str(name).isprintable()


@given(names, names)
def test_different_names_never_print_alike(one: DistinguishedName, other: DistinguishedName) -> None:
    assert (str(one) == str(other)) == (one == other)


@given(st.text(max_size=200))
def test_any_text_is_a_name_or_a_typed_error(text: str) -> None:
    for candidate in (text, "/" + text, "/CN=" + text, "CN=" + text):
        try:
            name = parse(candidate)
        except CredentialError as error:
            assert error.reason == Reason.NAME_MALFORMED
        else:
            assert parse(str(name)) == name


def test_a_common_name_cannot_imitate_two() -> None:
    """OpenSSL prints both alike; Globus would map the second to the first one's account."""
    honest = parse("/O=Grid/CN=jane/CN=admin")
    trick = DistinguishedName((*parse("/O=Grid").rdns, (("CN", "jane/CN=admin"),)))
    assert trick.openssl_oneline() == str(honest)
    assert str(trick) != str(honest)
    assert parse(str(trick)) == trick


def test_x509_round_trip_and_encodings_do_not_matter() -> None:
    name = parse("/C=XX/O=Grid/OU=a+CN=b/CN=Jos\\xC3\\xA9/emailAddress=a@b.c")
    assert DistinguishedName.from_x509(name.to_x509()) == name
    printable = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x", x509.name._ASN1Type.PrintableString)])
    assert DistinguishedName.from_x509(printable) == parse("/CN=x")
    with pytest.raises(CredentialError):
        parse("/C=XXX").to_x509()


def test_parts() -> None:
    name = parse("/C=XX/O=Grid/CN=Jane/CN=1234")
    assert name.common_name == "1234"
    assert name.parent.common_name == "Jane"
    assert name.startswith(parse("/C=XX/O=Grid"))
    assert not name.startswith(parse("/C=XX/O=Gri"))
    assert not parse("/C=XX").startswith(name)
    assert name.parent.child("cn", "1234") == name
    assert parse("/O=Grid").common_name == ""
    with pytest.raises(CredentialError):
        name.child("nonsense", "x")


@pytest.mark.parametrize(
    "text",
    [
        "/", "//CN=x", "/CN=x/", "/O=Grid/CN=host/ce.example.org", "/O=Grid/CN=a/b=c", "/O=Grid/CN=", "/CN=a+OU=b",
        "/o=g/cn=A b", "/O=Grid/CN=a\\/OU=b", "/O=Grid//CN=x", "/O=Grid/1.2.3=x/CN=y", "/O=Grid/Email=a@b/CN=q",
        "/O=\\x2F/CN=x", "/O=a\\",
    ],
)  # fmt: skip
def test_names_are_read_alike_whether_their_parts_are_plain_or_not(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> object:
        try:
            return DistinguishedName.parse(text)
        except CredentialError as error:
            return error.sentence

    quickly = read()
    monkeypatch.setattr("security.names._plain_part", lambda part: None)
    assert read() == quickly
