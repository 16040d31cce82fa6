"""What every level of the information system shares: the top names of the tree and the operational attributes."""

from __future__ import annotations

from datetime import UTC, datetime

from fabric.ldap import parse_dn

GRID = parse_dn("o=grid")
LOCAL = GRID.child("mds-vo-name", "local")
"""Above the sites, at a site's server and at the top."""
RESOURCE = GRID.child("mds-vo-name", "resource")
"""Above the entries of one agent, at that agent."""
GLUE = parse_dn("o=glue")
DOMAINS = GLUE.child("GLUE2GroupID", "grid")
"""Above the sites in GLUE 2.0."""
GLUE_RESOURCE = "resource"
"""The GLUE2GroupID of the place of services, below a site's AdminDomain or, at an agent, below `o=glue`."""

_LDAP_TIME = "%Y%m%d%H%M%SZ"
ATTRIBUTE_PRODUCER = "GridFabricProducer"
ATTRIBUTE_PRODUCED_AT = "GridFabricProducedAt"
ATTRIBUTE_VALID_UNTIL = "GridFabricValidUntil"
ATTRIBUTE_STATE = "GridFabricState"
OPERATIONAL_ATTRIBUTES = (ATTRIBUTE_PRODUCER, ATTRIBUTE_PRODUCED_AT, ATTRIBUTE_VALID_UNTIL, ATTRIBUTE_STATE)
"""With every published entry; LDAP clients ask for them by name or with `+`."""

PRODUCED_AT_US = "producedAtUs"
"""In a subscriber's copy of the tree alone: microseconds since 1970."""


def ldap_time(moment: datetime) -> str:
    """GeneralizedTime in UTC (RFC 4517 section 3.3.13)."""
    return moment.strftime(_LDAP_TIME)


def from_ldap_time(text: str) -> datetime:
    """What `ldap_time` made. Raises ValueError."""
    return datetime.strptime(text, _LDAP_TIME).replace(tzinfo=UTC)
