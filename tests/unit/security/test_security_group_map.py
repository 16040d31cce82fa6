from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.errors import MappingError, Reason
from security.mapfile import GroupMapFile

RULES = """
# the order decides
"/cms/Role=production/Capability=NULL" .cmsprd
"/cms/higgs/Role=NULL/Capability=NULL" higgs,.cms
/cms/top/* .top
"/cms/*" .below
/cms .cms # everybody
"""


def mapped(*fqans: str, text: str = RULES) -> str | None:
    rule = GroupMapFile.loads(text).lookup(fqans)
    return None if rule is None else ",".join(rule.accounts)


@pytest.mark.parametrize(
    ("fqans", "accounts"),
    [
        (("/cms", "/cms/Role=production"), ".cmsprd"),  # a rule for any of them, in the order of the rules
        (("/cms/Role=production", "/cms"), ".cmsprd"),
        (("/cms", "/cms/higgs"), "higgs,.cms"),
        (("/cms/higgs/Role=pilot",), ".below"),
        (("/cms/top",), ".below"),
        (("/cms/top/deep", "/cms"), ".top"),
        (("/cms/top/Role=x",), ".top"),
        (("/cms",), ".cms"),
        (("/cmsx",), None),
        (("/atlas", "/CMS"), None),
        ((), None),
    ],
)
def test_the_first_rule_that_matches_any_of_the_groups_wins(fqans: tuple[str, ...], accounts: str | None) -> None:
    assert mapped(*fqans) == accounts


@pytest.mark.parametrize(
    "line",
    [
        "/cms",
        '"/cms"',
        '"/cms .cms',
        "cms .cms",
        "/cms* .cms",
        "/cms/*/x .cms",
        "/cms/Role=* .cms",
        "* .cms",
        "/* .cms",
        "/cms root",
        "/cms .root",
        "/cms a;b",
        "/cms/Role=a/b .cms",
        '"/O=Grid/CN=Ada" ada',
        "/" + "x" * 9000 + " .cms",
    ],
)
def test_one_bad_line_refuses_the_file_and_is_named(line: str) -> None:
    """Without that line a later and wider rule would win."""
    with pytest.raises(MappingError) as caught:
        GroupMapFile.loads(f"/atlas .atlas\n{line}\n/cms .cms\n")
    assert caught.value.reason == Reason.MAP_FILE_INVALID and "line 2" in caught.value.sentence


def test_an_unreadable_file_is_refused(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    for path in (folder / "missing", folder):
        with pytest.raises(MappingError, match="nobody can be mapped by groups"):
            GroupMapFile.load(path)
    (folder / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(MappingError):
        GroupMapFile.load(folder / "binary")


@given(st.text(max_size=200))
def test_garbage_is_a_typed_refusal(text: str) -> None:
    try:
        GroupMapFile.loads(text)
    except MappingError as error:
        assert error.reason == Reason.MAP_FILE_INVALID
