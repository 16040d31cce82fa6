from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.catalog.names import (
    MAX_PATH_LENGTH,
    NameKind,
    kind_of,
    new_guid,
    one_spelling,
    parse_file_lfn,
    parse_guid,
    parse_lfn,
)
from fabric.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "path", "vo"),
    [
        ("/grid/cms/a", "/grid/cms/a", "cms"),
        ("lfn:/grid/cms/a b/ö", "/grid/cms/a b/ö", "cms"),
        ("/grid/cms/dir/", "/grid/cms/dir", "cms"),
        ("/grid/cms", "/grid/cms", "cms"),
        ("/grid", "/grid", ""),
        ("/grid/", "/grid", ""),
        ("/grid/cms/o\u0308", "/grid/cms/ö", "cms"),
        ("/grid/cms/" + "x" * 255, "/grid/cms/" + "x" * 255, "cms"),
        ("/grid/cms/" + "ö" * 255, "/grid/cms/" + "ö" * 255, "cms"),
        ("/grid/cms/...", "/grid/cms/...", "cms"),
        ("/grid/cms/%2e%2e", "/grid/cms/%2e%2e", "cms"),
    ],
)
def test_names_have_one_spelling(text: str, path: str, vo: str) -> None:
    lfn = parse_lfn(text)
    assert (lfn.path, lfn.vo) == (path, vo)
    assert parse_lfn(str(lfn)) == lfn
    assert f"{lfn.parent}/{lfn.name}" == lfn.path


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "grid/cms/a", "/grids/cms/a", "/etc/passwd", "/grid//a", "/grid/cms//a", "/grid/cms/a//",
        "/grid/cms/../x", "/grid/cms/.", "/grid/cms/a/..", "/grid/CMS/a", "/grid/../a", "/grid/cms/a\n", "/grid/cms/\0",
        "/grid/cms/\x7f", "/grid/cms/\u202egpj.exe", "/grid/cms/a\u200bb", "/grid/cms/\ud800", "/grid/cms/\u2028",
        "lfn:lfn:/grid/cms/a", "/grid/cms/" + "x" * 256, "/grid/cms" + "/abcdefgh" * 500, "srm://h:1/cms/0",
        "/grid/.hidden/a", "/grid/" + "v" * 65,
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_lfn(text)
    assert caught.value.reason == "LFN_INVALID"
    assert len(caught.value.sentence) < 400


@pytest.mark.parametrize("text", ["/grid", "/grid/cms", "/grid/cms/a/", "/grid/cms/"])
def test_a_file_needs_a_name_of_its_own(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_file_lfn(text)


@given(st.lists(st.text(min_size=1, max_size=260), min_size=1, max_size=30))
def test_every_accepted_name_is_safe_and_stable(components: list[str]) -> None:
    try:
        lfn = parse_lfn("/grid/cms/" + "/".join(components))
    except InvalidRequest:
        return
    assert parse_lfn(lfn.path) == lfn
    assert len(lfn.path) <= MAX_PATH_LENGTH
    assert unicodedata.is_normalized("NFC", lfn.path)
    for component in lfn.path.split("/")[1:]:
        assert component not in ("", ".", "..") and len(component) <= 255
        assert not any(unicodedata.category(c).startswith(("Cc", "Cs", "Cf")) for c in component)
    lfn.path.encode("utf-8")


@given(st.text(alphabet="abcXYZ09 ._-+@~äß漢", min_size=1, max_size=255).filter(lambda t: t not in (".", "..")))
def test_ordinary_names_are_accepted_as_they_are(name: str) -> None:
    assert parse_file_lfn(f"/grid/cms/{name}").name == unicodedata.normalize("NFC", name)


def test_guids() -> None:
    guid = new_guid()
    assert parse_guid("guid:" + guid.upper()) == guid
    for wrong in ("", "guid:", guid[:-1], guid + "0", guid.replace("-", ""), "{" + guid + "}", guid + "\n"):
        with pytest.raises(InvalidRequest):
            parse_guid(wrong)


@pytest.mark.parametrize(
    ("text", "kind", "spelling"),
    [
        ("/grid/cms/a", NameKind.LFN, "lfn:/grid/cms/a"),
        ("lfn:/grid/cms/dir/", NameKind.LFN, "lfn:/grid/cms/dir"),
        ("lfn:/grid/cms/cafe\u0301", NameKind.LFN, "lfn:/grid/cms/caf\u00e9"),
        ("lfn:/grid/cms/of srm:b", NameKind.LFN, "lfn:/grid/cms/of srm:b"),
        ("GUID:0F8FAD5B-D9CB-469F-A165-70867728950E", NameKind.GUID, "guid:0f8fad5b-d9cb-469f-a165-70867728950e"),
        ("srm://se.cern.ch:8443/cms/0A", NameKind.SURL, "srm://se.cern.ch:8443/cms/0A"),
        ("gsiftp://ftp.cern.ch/a", NameKind.SURL, "gsiftp://ftp.cern.ch/a"),
    ],
)
def test_what_kind_of_name_it_is_and_its_one_spelling(text: str, kind: NameKind, spelling: str) -> None:
    assert (kind_of(text), one_spelling(text)) == (kind, spelling)
    assert (kind_of(spelling), one_spelling(spelling)) == (kind, spelling)


@pytest.mark.parametrize("text", ["", "a", "guid:1", "guid:", "lfn://grid/cms/a", "/grid/cms//a", "://a", "/tmp/a"])
def test_what_is_no_name_has_no_spelling(text: str) -> None:
    with pytest.raises(InvalidRequest):
        one_spelling(text)
