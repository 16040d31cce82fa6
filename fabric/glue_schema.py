"""The schema of the information system: GLUE 1.3, GLUE 2.0, and what gridfabric adds to the tree itself."""

from __future__ import annotations

from importlib.resources import files

from fabric.information_tree import OPERATIONAL_ATTRIBUTES
from fabric.ldap.schema import (
    GENERALIZED_TIME,
    INTEGER,
    SYNTAX_INTEGER,
    SYNTAX_TIME,
    AttributeType,
    ObjectClass,
    Schema,
)
from fabric.ldap.schema_text import parse_definitions

_TIMES = (
    "GridFabricSiteSince",
    "GridFabricSiteLastSeen",
    "GridFabricProducerSince",
    "GridFabricProducerLastSeen",
    "GridFabricTopSince",
    "GridFabricRegionSince",
    "GridFabricRegionLastSeen",
)
_STATES = (
    "GridFabricSiteState", "GridFabricSiteReason", "GridFabricSiteWay", "GridFabricProducerID",
    "GridFabricProducerState", "GridFabricProducerReason", "GridFabricTopID", "GridFabricTopState",
    "GridFabricRegionID", "GridFabricRegionState", "GridFabricRegionReason", "GridFabricRegionWay",
)  # fmt: skip

_ATTRIBUTES = (
    *(
        AttributeType(name, GENERALIZED_TIME, substrings=False, syntax=SYNTAX_TIME, single_value=True)
        for name in _TIMES
    ),
    *(AttributeType(name, ordering=False, single_value=True) for name in _STATES),
    AttributeType("GridFabricTopDiffering", INTEGER, substrings=False, syntax=SYNTAX_INTEGER, single_value=True),
    *(AttributeType(name, single_value=True, operational=True) for name in OPERATIONAL_ATTRIBUTES),
)
_CLASSES = (
    ObjectClass("organization", "2.5.6.4", must=("o",), may=("description",)),
    ObjectClass(
        "GridFabricSite",
        kind="AUXILIARY",
        must=("GridFabricSiteState", "GridFabricSiteSince"),
        may=("GridFabricSiteLastSeen", "GridFabricSiteReason", "GridFabricSiteWay"),
    ),
    ObjectClass(
        "GridFabricProducer",
        must=("GridFabricProducerID", "GridFabricProducerState", "GridFabricProducerSince"),
        may=("GridFabricProducerLastSeen", "GridFabricProducerReason"),
    ),
    ObjectClass(
        "GridFabricRegion",
        must=("GridFabricRegionID", "GridFabricRegionState", "GridFabricRegionSince"),
        may=("GridFabricRegionLastSeen", "GridFabricRegionReason", "GridFabricRegionWay"),
    ),
    ObjectClass(
        "GridFabricTop",
        must=("GridFabricTopID", "GridFabricTopState", "GridFabricTopDiffering"),
        may=("GridFabricTopSince",),
    ),
)


def _schema() -> Schema:
    attributes, classes = parse_definitions(files("fabric").joinpath("glue.schema").read_text("utf-8"))
    return Schema((*attributes, *_ATTRIBUTES), strict=True, object_classes=(*classes, *_CLASSES))


GLUE_SCHEMA = _schema()
"""Attributes compare by the rules of their definitions; what is not listed is not recognised."""
