"""Calls to a key store, in the name of the user. Everything may be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gridfabric.keystore.v1 import keystore_pb2 as pb
from gridfabric.keystore.v1 import keystore_pb2_grpc

from security.secret_sharing import Share

__all__ = ["get_share", "put_share", "remove_share", "set_readers"]


async def put_share(channel: Any, key_id: bytes, share: Share, threshold: int) -> None:
    """Have a share kept, for its owner alone. Raises AlreadyExists(KEY_EXISTS), Exhausted(KEYS_EXHAUSTED)."""
    await keystore_pb2_grpc.KeyStoreStub(channel).PutShare(
        pb.PutShareRequest(key_id=key_id, x=share.x, share=share.values, threshold=threshold)
    )


async def get_share(channel: Any, key_id: bytes) -> tuple[Share, int]:
    """(the share, how many are needed). Raises Refused(KEY_REFUSED)."""
    answer = await keystore_pb2_grpc.KeyStoreStub(channel).GetShare(pb.GetShareRequest(key_id=key_id))
    return Share(answer.x, answer.share), answer.threshold


async def set_readers(
    channel: Any, key_id: bytes, *, grant: Sequence[str] = (), withdraw: Sequence[str] = ()
) -> tuple[list[str], int]:
    """(who may read now besides the owner, how many shares are needed). Raises Refused(KEY_REFUSED),
    InvalidRequest(READER_INVALID), Exhausted(READERS_EXHAUSTED)."""
    request = pb.SetReadersRequest(key_id=key_id, grant=grant, withdraw=withdraw)
    answer = await keystore_pb2_grpc.KeyStoreStub(channel).SetReaders(request)
    return list(answer.readers), answer.threshold


async def remove_share(channel: Any, key_id: bytes) -> None:
    """Forget a share for good. Raises Refused(KEY_REFUSED) but for the owner."""
    await keystore_pb2_grpc.KeyStoreStub(channel).RemoveShare(pb.RemoveShareRequest(key_id=key_id))
