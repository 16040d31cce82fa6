"""`.BrokerInfo`: what a job may know of where it runs and where its input data are, as `glite-brokerinfo` reads it.

Sections and names as the gLite WMS made them (`org.glite.wms.broker/brokerinfo.cpp`); the reader drops blanks, also
those within a value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from fabric.settings import Endpoint

NO_MOUNT_POINT = "n.a"
"""As GlueCESEBindMountInfo has it: no storage element is a file system of the worker nodes."""


def broker_info(
    *,
    ce: str,
    close_storage: Sequence[Endpoint],
    storage: Sequence[Endpoint],
    replicas: Mapping[str, Sequence[str]],
    protocols: Sequence[str],
    vo: str,
) -> bytes:
    """The file. `replicas`: SURLs by the name in InputData, the nearest first; `storage`: the elements of the grid."""
    close = [_record(name=_text(one.address), mount=_text(NO_MOUNT_POINT)) for one in close_storage]
    files = [_record(name=_text(name), SFNs=_list(map(_text, surls))) for name, surls in replicas.items()]
    holding = {urlsplit(surl).netloc for surls in replicas.values() for surl in surls}
    elements = [
        _record(name=_text(one.address), protocols=_list(_protocols(one))) for one in storage if one.address in holding
    ]
    return (
        "[\n"
        f"  ComputingElement = {_record(name=_text(ce), CloseStorageElements=_list(close))};\n"
        f"  InputFNs = {_list(files)};\n"
        f"  StorageElements = {_list(elements)};\n"
        f"  DataAccessProtocol = {_list(map(_text, protocols))};\n"
        f"  VirtualOrganisation = {_text(vo)};\n"
        "]\n"
    ).encode()


def _protocols(element: Endpoint) -> list[str]:
    offered = {"gridfabric": element.rpc, "https": element.http}
    return [_record(name=_text(name), port=str(port)) for name, port in offered.items() if port]


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list(values: Sequence[str] | map[str]) -> str:
    return f"{{ {', '.join(values)} }}"


def _record(**values: str) -> str:
    return f"[ {'; '.join(f'{name} = {value}' for name, value in values.items())} ]"
