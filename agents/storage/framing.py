"""Data messages of Put and Get without protobuf's copies: the same bytes on the wire, written and read by hand.

A message that holds only data is `tag, length, bytes`. The generated code copies a MiB three times to make it and once
to read it; at hundreds of MB/s these copies are a fifth of all processor time. Anything else goes through protobuf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gridfabric.storage.v1 import storage_pb2 as pb
from gridfabric.storage.v1 import storage_pb2_grpc

Piece = bytes | memoryview
"""Data on its way; a view keeps the message alive that it points into."""

_PUT_DATA = (pb.PutRequest.DATA_FIELD_NUMBER << 3) | 2
_GET_DATA = (pb.GetResponse.DATA_FIELD_NUMBER << 3) | 2


def put_data(piece: Piece) -> bytes:
    """A serialised PutRequest with only data."""
    return b"".join((_prefix(_PUT_DATA, len(piece)), piece))


def get_data(piece: Piece) -> bytes:
    """A serialised GetResponse with only data."""
    return b"".join((_prefix(_GET_DATA, len(piece)), piece))


def parse_put(raw: bytes) -> pb.PutRequest | memoryview:
    """A view of the data if there is nothing else in the message, else the message."""
    data = _data_of(raw, _PUT_DATA)
    return pb.PutRequest.FromString(raw) if data is None else data


def parse_get(raw: bytes) -> pb.GetResponse | memoryview:
    """A view of the data if there is nothing else in the message, else the message."""
    data = _data_of(raw, _GET_DATA)
    return pb.GetResponse.FromString(raw) if data is None else data


def _serialize_get(message: pb.GetResponse | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def add_to_server(servicer: Any, server: Any) -> None:
    """As the generated function of this name, with the codecs of this module for Put and Get."""

    class Registrar:
        """Passes on what the generated code registers."""

        def add_generic_rpc_handlers(self, handlers: Any) -> None:
            """Made from the handlers below; only the registered ones are used."""

        def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
            """The methods by name."""
            changed = dict(handlers)
            changed["Put"] = changed["Put"]._replace(request_deserializer=parse_put)
            changed["Get"] = changed["Get"]._replace(response_serializer=_serialize_get)
            server.add_registered_method_handlers(service, changed)

    storage_pb2_grpc.add_StorageServicer_to_server(servicer, Registrar())


def get_call(channel: Any) -> Callable[..., Any]:
    """The method Get of the storage element behind `channel`, answering with `parse_get`'s values."""
    return channel.unary_stream(
        "/gridfabric.storage.v1.Storage/Get",
        request_serializer=pb.GetRequest.SerializeToString,
        response_deserializer=parse_get,
    )


def _prefix(tag: int, length: int) -> bytes:
    out = bytearray((tag,))
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


def _data_of(raw: bytes, tag: int) -> memoryview | None:
    """The one field's content if `raw` is exactly that field, with a length of at most four bytes."""
    if len(raw) < 2 or raw[0] != tag:
        return None
    length = shift = 0
    for position in range(1, min(5, len(raw))):
        byte = raw[position]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            start = position + 1
            return memoryview(raw)[start:] if len(raw) - start == length and length else None
        shift += 7
    return None
