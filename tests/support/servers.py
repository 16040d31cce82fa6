"""Servers of others as processes of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from support.waiting import until


@asynccontextmanager
async def server(
    *command: str, port: int, folder: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs in `folder`, where `said` has what it says, and is killed at the end; its port is open."""
    with open(folder / "said", "wb") as said:
        process = await asyncio.create_subprocess_exec(*command, env=environ, cwd=folder, stdout=said, stderr=said)

    async def answers() -> bool:
        assert process.returncode is None, (folder / "said").read_text()[-2000:]
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await until(answers, f"{command[0]} answers")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
