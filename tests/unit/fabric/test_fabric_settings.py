"""Settings and options: what is wrong is said once, by name, before anything starts."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import InvalidRequest
from fabric.settings import Settings, parse_options

GOOD: dict[str, Any] = {
    "grid": "g", "kind": "gatekeeper", "name": "gatekeeper.CERN", "site": "CERN", "host": "lab",
    "listen": "127.0.0.1", "advertise": "localhost", "ports": {"rpc": 1, "ldap": 2}, "state_dir": "/s",
    "certificates": "/c", "credential": "/k", "organisation": "/O=EDG", "vos": ["cms"],
    "endpoints": {
        "information": [
            {"name": "i.CERN", "site": "CERN", "host": "localhost", "rpc": 3, "ldap": 4},
            {"name": "i.RAL", "site": "RAL", "host": "localhost", "rpc": 5},
        ]
    },
    "options": {"slots": 4},
}  # fmt: skip


def wrong(raw: Mapping[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as found:
        Settings.from_dict(raw)
    assert found.value.reason == "SETTINGS_INVALID"
    return found.value.sentence


def test_the_contracts_example_is_read() -> None:
    settings = Settings.from_dict(GOOD)
    assert settings.rpc_port == 1 and settings.vos == ("cms",)
    assert settings.state_dir == Path("/s") and settings.options["slots"] == 4
    assert settings.subject == "/O=EDG/OU=CERN/CN=gatekeeper/gatekeeper.CERN"
    assert settings.endpoint("information").name == "i.CERN"
    assert [e.rpc for e in settings.endpoints("information", "RAL")] == [5]
    assert settings.endpoints("broker") == ()
    meant = {text: settings.endpoint_meant("information", text) for text in ("RAL", "i.RAL", "localhost:5", "CNAF")}
    assert {text: one and one.name for text, one in meant.items()} == {
        "RAL": "i.RAL", "i.RAL": "i.RAL", "localhost:5": "i.RAL", "CNAF": None,
    }  # fmt: skip
    assert settings.endpoint_meant("information", "localhost") == settings.endpoint("information")
    with pytest.raises(InvalidRequest, match="name none"):
        settings.endpoint("broker")
    with pytest.raises(InvalidRequest, match="site CNAF"):
        settings.endpoint("information", "CNAF")


def test_one_vo_may_be_a_text() -> None:
    raw = {key: value for key, value in GOOD.items() if key != "vos"}
    assert Settings.from_dict({**raw, "vo": "cms"}).vos == ("cms",)
    assert Settings.from_dict(raw).vos == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stat_dir": "/x"}, "did you mean 'state_dir'"),
        ({"name": ""}, "'name' must be a text"),
        ({"kind": "a-b"}, "folder in agents/"),
        ({"ports": {"rpc": 70000}}, "port number"),
        ({"ports": {"rpc": "1"}}, "port number"),
        ({"ports": []}, "must be a table"),
        ({"vos": [1]}, "list of VO names"),
        ({"endpoints": {"broker": {}}}, "list of services"),
        ({"endpoints": {"broker": [1]}}, "list of tables"),
        ({"endpoints": {"broker": [{"name": "b"}]}}, "'host' is missing"),
        ({"endpoints": {"broker": [{"name": "b", "host": "h", "rcp": 1}]}}, "did you mean 'rpc'"),
        ({"fabric": {"map_refresh_s": -1}}, "at least 0"),
        ({"fabric": {"crl_policy": "maybe"}}, "require, warn, ignore"),
        ({"fabric": {"expired_crl_policy": "maybe"}}, "same, require, warn, ignore"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], words: str) -> None:
    assert words in wrong({**GOOD, **change})


def test_a_missing_key_is_named() -> None:
    for key in ("grid", "kind", "name", "site", "listen", "state_dir", "credential", "organisation"):
        assert f"'{key}' is missing" in wrong({k: v for k, v in GOOD.items() if k != key})


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    for content in (None, b"{", b"[]", b"\xff"):
        path = tmp_path / "s.json"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InvalidRequest, match=r"s\.json"):
            Settings.load(path)
    path.write_text(json.dumps(GOOD))
    assert Settings.load(path).name == "gatekeeper.CERN"


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Options:
    needed: str
    slots: int = field(default=1, metadata={"minimum": 1, "maximum": 10})
    wait_s: float = 1.0
    quota_bytes: int = 0
    names: tuple[str, ...] = ()
    colour: Colour = Colour.RED
    path: Path | None = None
    inner: Inner = Inner()
    table: Mapping[str, int] = field(default_factory=dict[str, int])
    on: bool = True

    def __post_init__(self) -> None:
        if self.needed == "impossible":
            raise ValueError("needed cannot be that")


def test_options_of_every_type() -> None:
    found = parse_options(
        Options,
        {
            "needed": "x", "slots": 3, "wait_s": 2, "names": ["a"], "colour": "red", "path": "/p",
            "inner": {"depth": 2}, "table": {"a": 1}, "on": False, "quota_bytes": 5,
        },
    )  # fmt: skip
    assert found == Options("x", 3, 2.0, 5, ("a",), Colour.RED, Path("/p"), Inner(2), {"a": 1}, False)
    assert parse_options(Options, {"needed": "x", "path": None}) == Options("x")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({}, "'needed' is missing"),
        ({"needed": 1}, "must be a text"),
        ({"needed": "x", "wait": 1}, "did you mean 'wait_s'"),
        ({"needed": "x", "slots": 0}, "at least 1"),
        ({"needed": "x", "slots": 11}, "at most 10"),
        ({"needed": "x", "slots": True}, "whole number"),
        ({"needed": "x", "slots": 1.5}, "whole number"),
        ({"needed": "x", "wait_s": "1 s"}, "must be a number"),
        ({"needed": "x", "wait_s": -0.1}, "at least 0"),
        ({"needed": "x", "wait_s": float("nan")}, "must be a number"),
        ({"needed": "x", "quota_bytes": -1}, "at least 0"),
        ({"needed": "x", "names": "abc"}, "must be a list"),
        ({"needed": "x", "names": [1]}, r"names[0]"),
        ({"needed": "x", "colour": "blue"}, "one of red"),
        ({"needed": "x", "inner": {"dept": 1}}, "did you mean 'depth'"),
        ({"needed": "x", "inner": 3}, "must be a table"),
        ({"needed": "x", "table": {"a": "b"}}, "table.a"),
        ({"needed": "x", "on": 1}, "true or false"),
        ({"needed": "x", "path": 3}, "must be a path"),
        ({"needed": "impossible"}, "cannot be that"),
    ],
)
def test_options_that_are_wrong(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        parse_options(Options, raw, where="site CERN, gatekeeper")
    assert words in found.value.sentence and "site CERN, gatekeeper" in found.value.sentence
