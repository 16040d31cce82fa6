"""Section `sessions`: what identity costs, beside gRPC without it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import helpers, limits
from bench.helpers import Trust
from bench.measure import Bench, rate, repeat_for
from security.validation import ValidationPolicy, validate_client_chain

AT_ONCE = 8
"""Calls under way from each client process."""


def run(bench: Bench) -> None:
    """Against an agent that does nothing, with the shell that every agent has."""
    limits.need(bench, "verify_p256")
    with helpers.trust(bench.folder / "sessions") as trust:
        _validations(bench, trust)
        proxy = trust.folder / "proxy.pem"
        trust.proxy().save(proxy)
        order: dict[str, Any] = {"seconds": bench.size(2, 1), "at_once": AT_ONCE}
        with helpers.server("plain", trust.host_files()) as port:
            without = {**order, "port": port, "certificate": str(trust.certificate)}
            _rates(bench, "unary", "plain_calls", "unary calls, grpc.aio over TLS without identity", without)
        _handshakes(bench, trust, order)
        with helpers.server("agent", helpers.agent_settings(trust)) as port:
            _against_agent(bench, trust, proxy, {**order, "port": port})


def _handshakes(bench: Bench, trust: Trust, order: dict[str, Any]) -> None:
    user = trust.folder / "user.pem"
    trust.user.save(user)
    authority = trust.folder / "authority.pem"
    authority.write_bytes(trust.grid.ca.ca_pem())
    order = {**order, "user": str(user), "authority": str(authority)}
    with helpers.server("greeter", {**order, **trust.host_files()}) as port:
        title = f"plain TLS handshakes, both sides with certificates (Python's ssl), {AT_ONCE} under way"
        _rates(bench, "handshakes", "handshakes", title, {**order, "port": port})


def _against_agent(bench: Bench, trust: Trust, proxy: Path, order: dict[str, Any]) -> None:
    order |= {"proxy": str(proxy), "certificates": str(trust.grid.trust_directory)}
    _rates(bench, "unary", "calls", "authenticated unary calls", order, "plain_calls")
    title = f"session set-ups (Begin, proof, Establish), {AT_ONCE} under way"
    _rates(bench, "sessions", "sessions", title, order, "handshakes")
    values = [helpers.once("connections", {**order, "at_once": 1})["rate"] for _ in range(bench.trials)]
    title = "whole new connections (trust read, host judged, TLS twice, session)"
    bench.add("connections", title, "1/s", values, note="one at a time")


def _rates(bench: Bench, role: str, key: str, title: str, order: dict[str, Any], limit: str = "") -> None:
    """By one client process, then by two at the same time."""
    for clients, name in ((1, "one client process"), (2, "two")):
        values = [sum(r["rate"] for r in helpers.together(role, [order] * clients)) for _ in range(bench.trials)]
        bench.add(f"{key}_{clients}", f"{title}, {name}", "1/s", values, limit=f"{limit}_{clients}" if limit else "")


def _validations(bench: Bench, trust: Trust) -> None:
    chain = trust.proxy().pem_chain()
    snapshot, policy = trust.grid.trust, ValidationPolicy()

    def validate() -> None:
        snapshot.verdicts.clear()  # what was found a moment ago would be found again
        validate_client_chain(chain, snapshot, policy, datetime.now(UTC))

    values = rate(repeat_for(limits.TRIAL_S, validate, 10), bench.short_trials)
    title = "proxy chains validated (RSA user, P-256 proxy and CA), one thread"
    bench.add("validations", title, "1/s", values, limit="verify_p256", note="a chain has three signatures")
