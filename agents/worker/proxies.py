"""Limited proxies of the owners whose jobs are here. Keys are made here and stay here; gatekeepers sign the
requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from fabric.errors import GridError, Refused, Unavailable, from_security
from security.certificates import PrivateKey
from security.credentials import Credential
from security.errors import SecurityError
from security.proxies import assemble, new_request

WAIT_S = 30.0
"""For the gatekeeper's answer, a reconnect included."""
MIN_LEFT = timedelta(minutes=2)
"""A cached proxy with less life than this is asked for again."""


class OwnerProxies:
    """One proxy per owner, in memory only."""

    def __init__(
        self, *, ask: Callable[[str, bytes], None], clock: Any, renewed: Callable[[str, Credential], None]
    ) -> None:
        self._ask, self._clock, self._renewed = ask, clock, renewed
        self._keys: dict[str, tuple[PrivateKey, bytes]] = {}
        self._credentials: dict[str, Credential] = {}
        self._waiting: dict[str, list[asyncio.Future[Credential]]] = {}

    def cached(self, owner: str) -> Credential | None:
        """The proxy if it is here and has some life left."""
        credential = self._credentials.get(owner)
        if credential is None or credential.not_after - self._clock.now() < MIN_LEFT:
            return None
        return credential

    async def get(self, owner: str) -> Credential:
        """The proxy, asking the gatekeeper if needed. Raises GridError: its refusal, or Unavailable NO_PROXY."""
        credential = self.cached(owner)
        if credential is not None:
            return credential
        future: asyncio.Future[Credential] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(owner, [])
        waiting.append(future)
        if len(waiting) == 1:
            self._request(owner)
        try:
            async with asyncio.timeout(WAIT_S):
                return await future
        except TimeoutError:
            still = self._credentials.get(owner)
            if still is not None and still.not_after > self._clock.now():
                return still
            raise Unavailable(
                "NO_PROXY", f"the gatekeeper did not grant a proxy of {owner} within {WAIT_S:g} s"
            ) from None
        finally:
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                self._waiting.pop(owner, None)

    def _request(self, owner: str) -> None:
        if owner not in self._keys:
            self._keys[owner] = new_request()
        self._ask(owner, self._keys[owner][1])

    def reconnected(self, owners: set[str]) -> None:
        """A new stream: the gatekeeper may have forgotten our requests, and must know them to renew."""
        for owner in owners | set(self._waiting):
            self._request(owner)
        for owner in set(self._credentials) - owners:
            self._credentials.pop(owner, None)
            self._keys.pop(owner, None)

    def granted(self, owner: str, chain_pem: bytes, reason: str, sentence: str) -> None:
        """The gatekeeper's answer, or its unasked renewal."""
        waiting = self._waiting.pop(owner, [])
        outcome: Credential | GridError
        if not chain_pem:
            outcome = Refused(reason or "PROXY_REFUSED", sentence or f"the gatekeeper grants no proxy of {owner}")
        elif owner not in self._keys:
            return
        else:
            try:
                outcome = assemble(self._keys[owner][0], chain_pem)
            except SecurityError as error:
                outcome = from_security(error)
        if isinstance(outcome, Credential):
            self._credentials[owner] = outcome
            self._renewed(owner, outcome)
        for future in waiting:
            if future.done():
                continue
            if isinstance(outcome, Credential):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
