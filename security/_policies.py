"""Certificate policies along a path (RFC 5280 sections 6.1.2 to 6.1.5), with the inputs that every grid site has.

Those inputs: any policy is welcome (user-initial-policy-set is anyPolicy), none is required, mapping and anyPolicy are
allowed. Then only one question is left: does an authority of the path require a policy that the path does not have.
OpenSSL answers it, but cannot be given these inputs from Python.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from security import _der

ANY_POLICY = "2.5.29.32.0"
MAX_POLICIES = 256
"""Policies, or mappings, of one certificate."""


def policy_problem(path: Sequence[x509.Certificate]) -> str:
    """Why the policies of this path are not acceptable, or an empty string.

    `path` is the end entity's certificate first and the root last, without proxies: these have no policies.
    """
    below_root = list(reversed(path[:-1]))
    last = len(below_root) - 1
    explicit = mapping = any_allowed = len(below_root) + 1
    # The nodes of the valid policy tree at the present depth: valid policy -> expected policies; empty: no tree.
    nodes: dict[str, set[str]] = {ANY_POLICY: {ANY_POLICY}}
    for index, certificate in enumerate(below_root):
        self_issued = certificate.subject == certificate.issuer
        try:
            rules = _Rules(certificate)
        except (ValueError, TypeError) as error:
            return f"a policy extension cannot be read ({error})"
        # 6.1.3 d, e, f
        nodes = _next_nodes(nodes, rules.policies, any_allowed > 0 or (index < last and self_issued))
        if not nodes and explicit == 0:
            return "a policy is required and the path has none that holds all along"
        if index == last:
            break
        # 6.1.4 a, b
        if any(ANY_POLICY in pair for pair in rules.mappings):
            return "anyPolicy is mapped"
        nodes = _mapped(nodes, rules.mappings, allowed=mapping > 0)
        # 6.1.4 h, i, j
        if not self_issued:
            explicit, mapping, any_allowed = max(explicit - 1, 0), max(mapping - 1, 0), max(any_allowed - 1, 0)
        explicit = min(explicit, rules.require_explicit if rules.require_explicit is not None else explicit)
        mapping = min(mapping, rules.inhibit_mapping if rules.inhibit_mapping is not None else mapping)
        any_allowed = min(any_allowed, rules.inhibit_any if rules.inhibit_any is not None else any_allowed)
    # 6.1.5 a, b, g
    explicit = max(explicit - 1, 0)
    if below_root and _Rules(below_root[-1]).require_explicit == 0:
        explicit = 0
    if not nodes and explicit == 0:
        return "a policy is required and the path has none that holds all along"
    return ""


class _Rules:
    """The policy extensions of one certificate."""

    def __init__(self, certificate: x509.Certificate) -> None:
        self.policies: tuple[str, ...] | None = None
        self.mappings: tuple[tuple[str, str], ...] = ()
        self.require_explicit: int | None = None
        self.inhibit_mapping: int | None = None
        self.inhibit_any: int | None = None
        for extension in certificate.extensions:
            value = extension.value
            if isinstance(value, x509.CertificatePolicies):
                self.policies = tuple(policy.policy_identifier.dotted_string for policy in value)
                if len(self.policies) > MAX_POLICIES:
                    raise ValueError("too many policies")
            elif isinstance(value, x509.PolicyConstraints):
                self.require_explicit = value.require_explicit_policy
                self.inhibit_mapping = value.inhibit_policy_mapping
            elif isinstance(value, x509.InhibitAnyPolicy):
                self.inhibit_any = value.skip_certs
            elif extension.oid == ExtensionOID.POLICY_MAPPINGS and isinstance(value, x509.UnrecognizedExtension):
                self.mappings = _read_mappings(value.value)


def _read_mappings(encoded: bytes) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for pair in _der.read_all(_der.read_single(encoded, _der.SEQUENCE).content):
        names = _der.read_all(pair.content)
        if pair.tag != _der.SEQUENCE or [name.tag for name in names] != [_der.OBJECT_IDENTIFIER] * 2:
            raise _der.DerError("a policy mapping is not a pair of policies")
        found.append((_der.object_identifier(names[0].content), _der.object_identifier(names[1].content)))
        if len(found) > MAX_POLICIES:
            raise _der.DerError("too many policy mappings")
    return tuple(found)


def _next_nodes(nodes: dict[str, set[str]], policies: tuple[str, ...] | None, any_counts: bool) -> dict[str, set[str]]:
    """Section 6.1.3 d and e: the nodes of the next depth."""
    if policies is None or not nodes:
        return {}
    expected = {policy for wanted in nodes.values() for policy in wanted}
    found = {
        policy: {policy}
        for policy in policies
        if policy != ANY_POLICY and (policy in expected or ANY_POLICY in nodes)
    }  # fmt: skip
    if ANY_POLICY in policies and any_counts:
        for policy in expected:
            found.setdefault(policy, {policy})
    return found


def _mapped(nodes: dict[str, set[str]], mappings: tuple[tuple[str, str], ...], *, allowed: bool) -> dict[str, set[str]]:
    """Section 6.1.4 b."""
    found = dict(nodes)
    for issuer_policy in {issuer for issuer, _ in mappings}:
        if not allowed:
            found.pop(issuer_policy, None)
        elif issuer_policy in nodes or ANY_POLICY in nodes:
            found[issuer_policy] = {subject for issuer, subject in mappings if issuer == issuer_policy}
    return found
