"""Proxies of waiting transfers and of subscriptions are renewed before they end, for those who stored a credential.

Nothing is said in a submission: who stores one for renewals (`myproxy-init -d -n`) wants it, and the store decides
which services it gives one to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from agents.myproxy.renewal import Renewals, Server
from agents.transfer.config import TransferOptions
from fabric.context import AgentContext
from fabric.errors import NotFound, Unauthenticated
from fabric.rpc.delegation import DEFAULT_ID


class TransferRenewals(Renewals):
    """Looks at each owner with transfers or subscriptions. A failure is said with what waits for the next proxy."""

    def __init__(self, context: AgentContext, options: TransferOptions, owners: Callable[[], Iterable[str]]) -> None:
        super().__init__(context, options)
        self._look_every_s, self._owners = options.renew_look_s, owners
        self.failures: dict[str, str] = {}
        """By owner: why the proxy of now was not renewed."""

    async def run(self) -> NoReturn:
        """Look for ever."""
        while True:
            owners = set(self._owners())
            for gone in self.failures.keys() - owners:
                del self.failures[gone]
            for owner in owners if self.servers else ():
                try:
                    credential = self._context.delegations.get(owner)
                except (NotFound, Unauthenticated):
                    continue  # without a proxy there is no proof that the owner was here
                self.look(owner, DEFAULT_ID, credential)
            await asyncio.sleep(self._look_every_s)

    async def stores_of(self, owner: str) -> Sequence[Server]:
        """All that this agent uses."""
        return self.servers

    async def tell(self, owner: str, text: str, *, renewed: bool) -> None:
        """A failure is for `failures`; after a renewal what waits goes on by itself."""
        if renewed:
            self.failures.pop(owner, None)
        else:
            self.failures[owner] = text
