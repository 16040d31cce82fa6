"""Small trees that the LDAP tests share."""

from __future__ import annotations

from fabric.ldap import EntryTree, Schema, make_entry
from fabric.ldap.schema import CASE_EXACT, INTEGER, AttributeType

SCHEMA = Schema(
    (
        AttributeType("GlueCEStateFreeJobSlots", INTEGER, substrings=False),
        AttributeType("GlueCEUniqueID", CASE_EXACT),
    )
)


def grid_tree(sites: int = 2, elements: int = 3) -> EntryTree:
    """o=grid, local, some sites, each with computing elements."""
    tree = EntryTree(["o=grid"], schema=SCHEMA, indexed=["GlueCEUniqueID"])
    tree.add(make_entry("o=grid", {"objectClass": ("top", "organization"), "o": "grid"}))
    tree.add(make_entry("mds-vo-name=local,o=grid", {"objectClass": ("top", "MDS"), "mds-vo-name": "local"}))
    for site in range(sites):
        base = f"mds-vo-name=SITE{site},mds-vo-name=local,o=grid"
        tree.add(make_entry(base, {"objectClass": ("top", "MDS"), "mds-vo-name": f"SITE{site}"}))
        for number in range(elements):
            unique = f"ce{number}.site{site}:2119/jobmanager-fork"
            tree.add(
                make_entry(
                    f"GlueCEUniqueID={unique},{base}",
                    {
                        "objectClass": ("GlueCETop", "GlueCE"),
                        "GlueCEUniqueID": unique,
                        "GlueCEName": f"Queue  Number {number}",
                        "GlueCEStateFreeJobSlots": number,
                        "GlueCEAccessControlBaseRule": ("VO:cms", "VO:atlas"),
                    },
                    {"producer": (f"gatekeeper.SITE{site}",)},
                )
            )
    return tree
