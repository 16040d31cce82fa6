"""Bars of bytes: on a terminal's stderr only, one at a time, and nothing of them stays."""

from __future__ import annotations

import os
import sys

import pytest

from agents.user_interface.progress import LEAST_SHOWN_BYTES, moving

SIZE = 8 * LEAST_SHOWN_BYTES


def shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch, size_bytes: int | None) -> str:
    ours, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.setenv("TERM", "xterm")
        with moving("events.dat", size_bytes) as progress:
            for _ in range(8):
                progress((size_bytes or SIZE) // 8)
            with moving("inner", size_bytes) as inner:
                inner(SIZE)
        stderr.write("the end")
        stderr.flush()
        text = b""
        while b"the end" not in text:
            text += os.read(ours, 65536)
    os.close(ours)
    return text.decode()


@pytest.mark.parametrize("size_bytes", [SIZE, None])
def test_a_bar_tells_what_moves_and_where_to(monkeypatch, size_bytes):
    text = shown_on_a_terminal(monkeypatch, size_bytes)
    assert "events.dat" in text and "32.0" in text and "inner" not in text
    assert "\x1b[2K" in text.rpartition("events.dat")[2], "the line is wiped"


def test_little_needs_no_bar(monkeypatch):
    assert shown_on_a_terminal(monkeypatch, LEAST_SHOWN_BYTES - 1) == "the end"


def test_no_bar_but_on_a_terminal(capsys):
    with moving("events.dat", SIZE) as progress:
        progress(SIZE)
    assert capsys.readouterr() == ("", "")
