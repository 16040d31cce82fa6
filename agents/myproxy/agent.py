"""The credential store, put together."""

from __future__ import annotations

from OpenSSL import SSL

from agents.myproxy import store as rows
from agents.myproxy.config import parse_config
from agents.myproxy.door import MyProxyDoor
from agents.myproxy.keeper import Keeper
from agents.myproxy.vault import Vault, load_key
from fabric.agent import Agent, AgentHealth, AgentState
from fabric.context import AgentContext
from fabric.glue13 import service_entries
from fabric.glue_model import Service
from fabric.tls_door import TlsDoor


class MyProxyAgent(Agent):
    """Credentials are in ``myproxy.db``, encrypted with ``myproxy.key`` and the passphrases that it does not know."""

    def __init__(self, context: AgentContext) -> None:
        super().__init__(context)
        settings = context.settings
        self._config = config = parse_config(settings.options)
        store = context.store("myproxy", rows.metadata)
        key = load_key(context.state_dir / "myproxy.key", must_exist=store.read_sync(rows.count) > 0)
        self.keeper = Keeper(config, store, Vault(key, config.scrypt_log2_n), context)
        self.keeper.recover()
        self._door = MyProxyDoor(
            self.keeper,
            context.log,
            name=settings.name,
            request_timeout_s=config.request_timeout_s,
            step_timeout_s=config.step_timeout_s,
        )

    async def start(self) -> None:
        settings, config = self.context.settings, self._config
        tls = TlsDoor(
            lambda: self.context.credential,
            self._door.serve,
            self.context.log,
            handshake_timeout_s=config.request_timeout_s,
            max_per_address=config.max_connections_per_address,
            newest=SSL.TLS1_2_VERSION,
        )
        await tls.start(settings.listen, settings.ports.get("myproxy", 0))
        self.context.close_at_end(tls)
        self.context.spawn(self.keeper.watch(), "erase expired credentials")
        self.context.publisher.follow(
            lambda: service_entries(
                Service(
                    unique_id=settings.name,
                    kind="MyProxy",
                    endpoint=f"myproxy://{settings.advertise}:{tls.port}",
                    site=settings.site,
                    name=settings.name,
                    vos=self.context.vos.served,
                )
            )
        )

    def health(self) -> AgentHealth:
        keeper = self.keeper
        numbers = {
            "credentials": float(keeper.held),
            "stored": float(keeper.stored),
            "delegated": float(keeper.delegated),
            "refused": float(self._door.refused),
        }
        return AgentHealth(AgentState.GREEN, "", numbers)


def build(context: AgentContext) -> Agent:
    """The agent for these settings. Raises GridError."""
    return MyProxyAgent(context)
