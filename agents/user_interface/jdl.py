"""`grid jdl`: job descriptions looked at without a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents.broker.client import (
    JdlError,
    classad_text,
    normalise,
    notes,
    problems,
    read_node_files,
    read_sandbox,
    template_values,
)
from agents.user_interface import console
from agents.user_interface.exits import Ended, ExitCode
from agents.user_interface.jobs import read_jdl
from fabric.errors import InvalidRequest


def check_command(file: Path, *, as_json: bool) -> None:
    """`grid jdl check`."""
    text = read_jdl(file)
    folder = file.resolve().parent
    found: list[InvalidRequest] = []
    nodes: dict[str, str] = {}
    try:
        nodes = read_node_files(text, folder)
        found += problems(text, nodes)
        if not found:
            read_sandbox(text, folder, nodes)
    except InvalidRequest as error:
        found.append(error)
    if found:
        if as_json:
            console.print_json({"ok": False, "errors": [_as_data(error) for error in found]})
        else:
            for error in found:
                console.warn(f"{file}: {error.sentence}")
        raise Ended(ExitCode.USAGE)
    template = normalise(text, nodes)
    values = template_values(template)
    without_effect = notes(text)
    if as_json:
        console.print_json({"ok": True, "jobs": len(template), "jdl": values, "notes": without_effect})
        return
    print(classad_text(values))
    for sentence in without_effect:
        console.warn(f"{file}: {sentence}")


def _as_data(error: InvalidRequest) -> dict[str, Any]:
    data: dict[str, Any] = {"reason": error.reason, "sentence": error.sentence}
    if isinstance(error, JdlError):
        data.update(
            line=error.line, column=error.column, attribute=error.attribute, file=error.file, cure=error.plain_sentence
        )
    return data
