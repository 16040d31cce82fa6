"""The member list as an LDAP tree, as the EDG VO servers published it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from agents.vo.model import Member
from fabric.ldap.dn import Dn, parse_dn
from fabric.ldap.entry import Entry, make_entry
from fabric.ldap.tree import EntryTree

GROUP_CLASS = "groupOfNames"
MEMBER_CLASSES = ("top", "person", "organizationalPerson", "inetOrgPerson", "gridMember")


class ContextCsn(Mapping[str, tuple[str, ...]]):
    """The operational attribute `contextCSN` of the top entry, as OpenLDAP has it: different after every change, so
    that readers need not ask for the whole list to see that it is the same."""

    def __init__(self, started: datetime) -> None:
        self.changes = 0
        self._started = started.astimezone(UTC).strftime("%Y%m%d%H%M%S.%fZ")

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if name != "contextCSN":
            raise KeyError(name)
        return (f"{self._started}#{self.changes:06x}#000#000000",)

    def __iter__(self) -> Iterator[str]:
        return iter(("contextCSN",))

    def __len__(self) -> int:
        return 1


class MemberDirectory:
    """`o=<vo>` with `ou=People`: one entry per member, class gridMember, attribute subject."""

    def __init__(self, vo: str, started: datetime, tree: EntryTree) -> None:
        """`started` is when this began: no two lives have the same. The tree may hold other VOs too."""
        self.base = parse_dn("o=x").parent.child("o", vo)
        self.people = self.base.child("ou", "People")
        self.tree, self._csn, self._members = tree, ContextCsn(started), 0
        tree.close(self.base)
        tree.open(self.base)
        tree.add(make_entry(self.base, {"objectClass": ["top", "organization"], "o": vo}, self._csn))
        tree.add(make_entry(self.people, {"objectClass": ["top", "organizationalUnit"], "ou": "People"}))

    def __len__(self) -> int:
        return self._members

    def put(self, member: Member) -> None:
        """Show a member as it is now. Nothing once it was closed."""
        if self.base not in self.tree:
            return
        entry = self._entry(member)
        self._members += entry.dn not in self.tree
        self._csn.changes += 1
        self.tree.replace(entry)

    def remove(self, subject: str) -> None:
        """Show it no more. Idempotent."""
        if self.tree.remove(self._dn(subject)):
            self._members -= 1
            self._csn.changes += 1

    def close(self) -> None:
        """Show nobody."""
        self.tree.close(self.base)

    def _dn(self, subject: str) -> Dn:
        return self.people.child("subject", subject)

    def _entry(self, member: Member) -> Entry:
        surname = member.common_name.split()[-1] if member.common_name.split() else member.common_name
        return make_entry(
            self._dn(member.subject),
            {
                "objectClass": list(MEMBER_CLASSES),
                "subject": member.subject,
                "cn": member.common_name,
                "sn": surname,
                "mail": [member.email] if member.email else [],
                "group": list(member.groups),
                "description": f"subject= {member.subject}",
            },
        )
