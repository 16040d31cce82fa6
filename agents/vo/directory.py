"""The member list as an LDAP tree, as the EDG VO servers published it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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

    def __init__(self, tree: EntryTree, started: datetime) -> None:
        self._tree = tree
        self._started = started.astimezone(UTC).strftime("%Y%m%d%H%M%S.%fZ")

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if name != "contextCSN":
            raise KeyError(name)
        return (f"{self._started}#{self._tree.version:06x}#000#000000",)

    def __iter__(self) -> Iterator[str]:
        return iter(("contextCSN",))

    def __len__(self) -> int:
        return 1


class MemberDirectory:
    """`o=<vo>` with `ou=People` (one entry per member, class gridMember, attribute subject) and `ou=Groups`."""

    def __init__(self, vo: str, members: Iterable[Member], started: datetime) -> None:
        """`started` is when this server began: no two lives have the same."""
        self.base = parse_dn("o=x").parent.child("o", vo)
        self.people = self.base.child("ou", "People")
        self.tree = EntryTree([self.base], indexed=("subject", "cn"))
        csn = ContextCsn(self.tree, started)
        self.tree.add(make_entry(self.base, {"objectClass": ["top", "organization"], "o": vo}, csn))
        self.tree.add(make_entry(self.people, {"objectClass": ["top", "organizationalUnit"], "ou": "People"}))
        for member in members:
            self.put(member)

    def __len__(self) -> int:
        return len(self.tree) - 2

    def put(self, member: Member) -> None:
        """Show a member as it is now."""
        self.tree.replace(self._entry(member))

    def remove(self, subject: str) -> None:
        """Show it no more. Idempotent."""
        dn = self._dn(subject)
        if dn in self.tree:
            self.tree.remove(dn)

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
