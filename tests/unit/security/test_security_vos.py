"""The list of VOs: what it says to whom, and that whatever is not such a list is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from security.errors import MappingError
from security.vos import EVERYWHERE, Vo, VoList, VoServer, check_name

SERVER = VoServer("vo.cms", "CERN", "localhost", 1, 2, 3)
CMS = Vo("cms", 0, (SERVER,), frozenset({EVERYWHERE}))
ATLAS = Vo("atlas", 1, (SERVER,), frozenset({"RAL"}))
GONE = Vo("gone", 2, (SERVER,), frozenset({EVERYWHERE}), datetime(2026, 11, 22, 7, tzinfo=UTC), "experiment over")
LIST = VoList((CMS, ATLAS, GONE))


def test_what_is_written_is_read_again(tmp_path):
    LIST.write(tmp_path / "vos.json")
    assert VoList.load(tmp_path / "vos.json") == LIST


def test_a_site_lets_in_what_it_accepts_and_the_grid_everything():
    assert LIST.accepted_at("RAL") == ("cms", "atlas")
    assert LIST.accepted_at("CERN") == ("cms",)
    assert LIST.accepted_at("") == ("cms", "atlas")


def test_a_refusal_says_why():
    refusal = ATLAS.refusal("CERN")
    assert refusal is not None and refusal.reason == "VO_NOT_ACCEPTED"
    assert "site CERN does not accept the VO atlas" in refusal.sentence
    for site in ("CERN", ""):
        refusal = GONE.refusal(site)
        assert refusal is not None and refusal.reason == "VO_DISSOLVED"
        assert "dissolved at 2026-11-22T07:00:00Z (experiment over)" in refusal.sentence
    assert ATLAS.refusal("RAL") is None and ATLAS.refusal("") is None


def _changed(**fields):
    return json.dumps({"vos": [{**json.loads(LIST.emit())["vos"][0], **fields}]})


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", '{"vos": null}', '{"vos": {}, "vos": [1]}', '{"vos": [{}]}', "[" * 100_000,
        _changed(name=5), _changed(number="1"), _changed(number=-1), _changed(number=10**9), _changed(sites=1),
        _changed(sites=[1]), _changed(dissolved_at="yesterday"), _changed(dissolved_at=7), _changed(reason=None),
        _changed(servers=[{"name": "x"}]), _changed(servers=[{**vars(SERVER), "rpc": 70_000}]),
        _changed(servers=[{**vars(SERVER), "host": 1}]),
        json.dumps({"vos": json.loads(LIST.emit())["vos"] * 2}),
    ],
)  # fmt: skip
def test_whatever_is_not_a_list_is_refused_as_a_whole(text):
    with pytest.raises(MappingError) as caught:
        VoList.parse(text)
    assert caught.value.reason == "VO_LIST_UNREADABLE"


def test_a_missing_or_binary_file_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("missing", "binary"):
        with pytest.raises(MappingError, match="list of VOs"):
            VoList.load(tmp_path / name)


@pytest.mark.parametrize("name", ["cms", "a", "na62.vo.gridpp.ac.uk", "belle-ii", "t2k.org"])
def test_names_of_the_field_are_good(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "CMS", "c ms", "cms1", "1cms", ".cms", "cms.", "cms-", "c/ms", "c..ms", "../ms", "ü", "c_ms", "a\n"]
)  # fmt: skip
def test_names_that_would_break_something_are_refused(name):
    with pytest.raises(ValueError, match="cannot be the name of a VO"):
        check_name(name)
