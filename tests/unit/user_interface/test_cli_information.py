"""Searches go to another top server when one does not answer."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from agents.user_interface import information, infosites
from fabric.errors import Unavailable
from fabric.glue_schema import GLUE_SCHEMA
from fabric.information_tree import GRID
from fabric.ldap import EntryTree, LdapServer, make_entry


@pytest.fixture
async def server():
    tree = EntryTree([GRID], schema=GLUE_SCHEMA)
    tree.add(make_entry(GRID, {"objectClass": ("top", "organization"), "o": "grid"}))
    server = LdapServer(tree, host="127.0.0.1", port=0, schema=GLUE_SCHEMA)
    await server.start()
    yield server
    await server.close()


@pytest.fixture
def closed():
    with socket.socket() as bound:  # bound and not listening: nobody else gets the port, and it refuses
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def endpoints_file(folder: Path, monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    tops = [{"name": f"top{port}", "host": "127.0.0.1", "ldap": port} for port in ports]
    (folder / "endpoints.json").write_text(json.dumps({"endpoints": {"top": tops}}))
    monkeypatch.setenv("GRIDFABRIC_ENDPOINTS", str(folder / "endpoints.json"))


async def test_the_next_top_server_is_asked_when_one_does_not_answer(server, closed, tmp_path, monkeypatch, capsys):
    endpoints_file(tmp_path, monkeypatch, closed, server.port)
    assert information.top_server() == ("127.0.0.1", closed)
    found = await information.search(information.top_server(), "(o=grid)")
    assert [str(entry.dn) for entry in found] == ["o=grid"]
    assert f"asking the top server 127.0.0.1:{server.port}" in capsys.readouterr().err


async def test_when_none_answers_the_sentence_is_of_the_last(closed, tmp_path, monkeypatch):
    endpoints_file(tmp_path, monkeypatch, closed)
    with pytest.raises(Unavailable, match=f"127.0.0.1:{closed}"):
        await information.search(information.top_server(), "(o=grid)")


async def test_a_server_that_is_no_top_server_has_no_substitute(server, closed, tmp_path, monkeypatch):
    endpoints_file(tmp_path, monkeypatch, server.port)
    with pytest.raises(Unavailable):
        await information.search(("127.0.0.1", closed), "(o=grid)")


def ce(name: str, **fields: Any) -> information.ComputingElement:
    known = {"site": "A", "status": "Production", "total": 72, "free": 68, "running": 4, "waiting": 1, "vos": ("cms",)}
    return information.ComputingElement(name, fresh="current", **{**known, **fields})


def test_infosites_prints_columns_as_lcg_infosites_does() -> None:
    assert infosites.ce_table([ce("b:2119/jobmanager-lcgpbs-cms"), ce("a:2119/x", total=5)]) == [
        "#   CPU\t   Free\tTotal Jobs\tRunning\tWaiting\tComputingElement",
        "----------------------------------------------------------------",
        "      5\t     68\t         5\t      4\t      1\ta:2119/x",
        "     72\t     68\t         5\t      4\t      1\tb:2119/jobmanager-lcgpbs-cms",
    ]


def test_infosites_prints_space_as_lcg_infosites_does() -> None:
    se = information.StorageElement(
        "se.a", "A", "se.a", 1, 0, 11 * 1024, 10995116266 * 1024, ("cms",), "current", "disk"
    )
    assert infosites.se_table([se]) == [
        " Avail Space(kB)  Used Space(kB)  Type \tSE",
        "------------------------------------------",
        "     10995116266              11  disk \tse.a",
    ]


def test_infosites_lists_close_storage_as_lcg_infosites_does() -> None:
    assert infosites.close_table([ce("b"), ce("a", close_ses=("se2", "se1"))]) == [
        "Name of the CE: a",
        "\tse1",
        "\tse2",
        "",
        "Name of the CE: b",
        "",
    ]
