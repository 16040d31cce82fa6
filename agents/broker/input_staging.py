"""Input data on tape: the jobs that need it wait here, where they hold no slot, until it is on disk and pinned there.

In the name of their owner, in the background, once for all jobs of one owner with the same input. What cannot be asked,
a catalogue or storage element, keeps no job back: the worker sees for itself, and a file that left the disk meanwhile
fails the job there with INPUT_DATA_ON_TAPE, which brings it back here. When no unfinished job needs it, its pins go.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agents.broker.model import Cluster
from agents.catalog import client as catalog
from agents.storage import client as storage
from fabric.context import AgentContext
from fabric.errors import Exhausted, GridError, InvalidRequest
from security.credentials import Credential

PIN_S = 4 * 3600.0
"""How long input stays on disk after it was looked at last: jobs wait at CEs too."""
VALID_S = 600.0
"""How long it is believed that input is on disk; well within the pin."""
ASK_AGAIN_S = (1.0, 60.0)
LOOK_S = 60.0
"""A look that takes longer is given up."""
MAX_ASKED = 1000
"""Files in one request to a storage element."""
LOOKING = "its input data is being looked for"

Input = tuple[str, tuple[str, ...]]
"""Owner and names."""


@dataclass(slots=True)
class _Known:
    sentence: str = LOOKING
    """Why jobs wait for this input; empty if they do not."""
    until_s: float = 0.0
    """Monotonic: looked at again from then on."""
    task: asyncio.Task[None] | None = None


class InputStaging:
    """What is known of the input of jobs that wait."""

    def __init__(
        self,
        context: AgentContext,
        credential_of: Callable[[str], Credential],
        spawn: Callable[[Coroutine[None, None, None], str], asyncio.Task[None]],
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called when jobs may be matched that could not before."""
        self._context, self._credential_of, self._spawn, self._changed = context, credential_of, spawn, changed
        self._known: dict[Input, _Known] = {}
        self._pinned: dict[Input, dict[str, list[str]]] = {}
        """By storage element: SURLs that are pinned, or wanted, for this input. Forgotten with the process; the pins
        end by themselves then."""

    def obstacles(self, waiting: Iterable[Cluster]) -> dict[int, str]:
        """Those of these clusters whose input is not on disk, and why. Looks at what is due, in the background."""
        now_s = self._context.clock.monotonic()
        found: dict[int, str] = {}
        wanted: set[Input] = set()
        for cluster in waiting:
            if not cluster.input_data:
                continue
            key = (cluster.owner, cluster.input_data)
            wanted.add(key)
            known = self._known.setdefault(key, _Known())
            if known.until_s <= now_s and known.task is None:
                known.task = self._spawn(self._look(key, known), f"input data of {cluster.owner}")
            if known.sentence:
                found[cluster.id] = known.sentence
        for key in self._known.keys() - wanted:
            if self._known[key].task is None:
                del self._known[key]
        return found

    async def _look(self, key: Input, known: _Known) -> None:
        valid_s = VALID_S
        try:
            async with asyncio.timeout(LOOK_S):
                known.sentence, valid_s = await self._standing(*key)
        except (GridError, TimeoutError) as error:
            self._context.log.warning("input.not_asked", owner=key[0], sentence=str(error))
            known.sentence, valid_s = "", ASK_AGAIN_S[1]
        finally:
            known.until_s, known.task = self._context.clock.monotonic() + valid_s, None
            self._changed()

    async def _standing(self, owner: str, names: Sequence[str]) -> tuple[str, float]:
        """(why its jobs wait, for how long that is believed). Raises GridError."""
        credential = self._credential_of(owner)
        tapes: dict[str, bool | None] = {}
        asked: defaultdict[str, list[str]] = defaultdict(list)
        for surls in await self._replicas(names, credential):
            for surl in surls:
                if (door := _door(surl)) not in tapes:
                    tapes[door] = await self._has_tapes(door, credential)
            if not any(tapes[_door(surl)] is False for surl in surls):
                for surl in [surl for surl in surls if tapes[_door(surl)]][:1]:
                    asked[_door(surl)].append(surl)
        staging: list[storage.Staging] = []
        if asked:
            self._pinned[owner, tuple(names)] = dict(asked)
        for door, surls in asked.items():
            channel = await self._channel(door, credential)
            for start in range(0, len(surls), MAX_ASKED):
                try:
                    part = surls[start : start + MAX_ASKED]
                    staging += await storage.bring_online(channel, part, PIN_S, self._holder(names))
                except Exhausted as error:
                    return f"its input data is on tape: {error.sentence}", error.retry_after_s or ASK_AGAIN_S[1]
        late = [each for each in staging if each.retry_after_s]
        if not late:
            return "", VALID_S
        first = min(late, key=lambda each: each.retry_after_s)
        sentence = f"{len(late)} of {len(names)} input files are on tape and are being staged ({first.sentence})"
        return sentence, min(max(first.retry_after_s, ASK_AGAIN_S[0]), ASK_AGAIN_S[1])

    def _holder(self, names: Sequence[str]) -> str:
        """The pins of one input of one broker are of their own: others of the same owner stay."""
        return hashlib.sha256("\0".join([self._context.settings.name, *names]).encode()).hexdigest()[:32]

    async def release_unneeded(self, needed: Callable[[str], Awaitable[Collection[Input]]]) -> None:
        """Let go of what no unfinished job needs any more. `needed`: the input of an owner's unfinished jobs."""
        for key in list(self._pinned):
            if key in await needed(key[0]):
                continue
            known = self._known.get(key)
            if known is None or known.task is None:
                self._known.pop(key, None)  # who comes now has it looked at anew
                await self._release(*key)

    async def _release(self, owner: str, names: Sequence[str]) -> None:
        """Tried once: what is away keeps its pins until they end."""
        for door, surls in self._pinned.pop((owner, tuple(names))).items():
            try:
                channel = await self._channel(door, self._credential_of(owner))
                for start in range(0, len(surls), MAX_ASKED):
                    await storage.release(channel, surls[start : start + MAX_ASKED], self._holder(names))
            except GridError as error:
                self._context.log.warning("input.not_released", owner=owner, sentence=error.sentence)

    async def _replicas(self, names: Sequence[str], credential: Credential) -> list[list[str]]:
        """SURLs of each file that is known."""
        endpoint = self._context.settings.endpoint("catalog")
        channel = await self._context.channels.get(endpoint.host, endpoint.rpc, credential=credential)
        entries, _ = await catalog.lookup(channel, names)
        return [[replica.surl for replica in entry.replicas] for entry in entries]

    async def _has_tapes(self, door: str, credential: Credential) -> bool | None:
        """None: it does not say."""
        try:
            await storage.bring_online(await self._channel(door, credential), [])
        except GridError as error:
            return False if error.reason == "NO_TAPES" else None
        return True

    async def _channel(self, door: str, credential: Credential) -> Any:
        host, _, port = door.rpartition(":")
        return await self._context.channels.get(host.strip("[]"), int(port), credential=credential)


async def storage_elements_of(channel: Any, names: Sequence[str]) -> dict[str, frozenset[str]]:
    """Where each of these files has replicas: at no storage element if it is unknown, or no valid name (one job's wrong
    name keeps no other's files from being found). Raises GridError."""
    spellings: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(InvalidRequest):
            spellings[name] = catalog.one_spelling(name)
    entries, _ = await catalog.lookup(channel, spellings.values())
    found: dict[str, frozenset[str]] = {}
    for entry in entries:
        where = frozenset(replica.storage_element for replica in entry.replicas)
        found[f"lfn:{entry.lfn}"] = found[f"guid:{entry.guid}"] = where
    return {name: found.get(spellings.get(name, ""), frozenset()) for name in names}


def _door(surl: str) -> str:
    """host:port of the storage element."""
    return surl.partition("://")[2].partition("/")[0]
