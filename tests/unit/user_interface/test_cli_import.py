from __future__ import annotations

import io
import json
from typing import Any

import pytest

from agents.user_interface import imports
from agents.user_interface.exits import UsageProblem
from fabric.errors import GridError

SUMS = ("0a0b0c0d", "ab" * 32)
GUID = "de42ab2c-4b25-4af2-94a5-a53d75e8f94d"


def read(text: str | bytes) -> list[tuple[int, Any]]:
    dump = io.BytesIO(text.encode() if isinstance(text, str) else text)
    return [(number, line) for number, line, _ in imports._lines(dump)]


def test_csv_and_json_say_the_same() -> None:
    surls = ["srm://a:1/cms/1", "srm://b:1/cms/2"]
    by_csv = read(
        "\ufeffLFN,guid,size,adler32,sha256,surls\r\n\r\n"
        f'"/grid/cms/a,""b",{GUID},7,{",".join(SUMS)},{" ".join(surls)}\r\n'
    )
    fields = {"lfn": '/grid/cms/a,"b', "guid": GUID, "size": 7, "adler32": SUMS[0], "sha256": SUMS[1], "surls": surls}
    ((number, line),) = by_csv
    assert (number, line.file.guid, line.file.surl, line.more_surls) == (3, GUID, surls[0], (surls[1],))
    ((_, same),) = read("\n\n" + json.dumps(fields))
    assert same == line


def test_a_line_without_a_guid_has_the_same_each_time() -> None:
    fields = {"size": 0, "adler32": "00000001", "sha256": "ab" * 32}
    lines = [line for _, line in read("\n".join(json.dumps({**fields, "lfn": x}) for x in ("/a", "lfn:/a", "/b")))]
    assert lines[0].file.guid == lines[1].file.guid != lines[2].file.guid


@pytest.mark.parametrize(
    "wrong",
    [
        b"[1]", b"{", b"\xff{}", b'{"size": 1.5}', b'{"size": true}', b'{"size": -1}', b'{"size": 9223372036854775808}',
        b'{"size": 1, "lfn": 5}', b'{"size": 1, "surls": "srm://a"}', b'{"size": 1, "lfn": "\\ud800"}',
        b'{"size": 1, "surls": ["\\udfff"]}', b"{" + b'"a":{' * 100_000, b"9" * 5000, b" " * 10 + b"x" * (1 << 20),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_wrong_line_is_refused_with_its_number_and_the_next_goes_on(wrong: bytes) -> None:
    good = b'{"lfn": "/grid/cms/a", "size": 1}\n'
    lines = read(good + wrong + b"\n" + good)
    assert [number for number, _ in lines] == [1, 2, 3]
    assert [isinstance(line, GridError) for _, line in lines] == [False, True, False]
    assert lines[1][1].reason == "LINE_INVALID"


@pytest.mark.parametrize("row", ["a", "a,1,x,y,z", 'a,"1,x,y', "a,-1,x,y", "a,1.0,x,y", "a,\u0661,x,y"])
def test_a_wrong_row_is_refused_with_its_number(row: str) -> None:
    ((number, error), (_, good)) = read(f"lfn,size,adler32,sha256\n{row}\na,1,x,y\n")
    assert (number, error.reason, good.file.lfn) == (2, "LINE_INVALID", "a")


@pytest.mark.parametrize(
    "header", ["lfn,size", "hello", "lfn,lfn,size,adler32,sha256", "\udcff".encode("utf-8", "surrogateescape")]
)
def test_what_is_no_dump_is_said_at_once(header: str | bytes) -> None:
    first = header if isinstance(header, bytes) else header.encode()
    with pytest.raises(UsageProblem, match="names of columns"):
        read(first + b"\nx\n")
