"""The methods of gridfabric.keystore.v1.KeyStore."""

from __future__ import annotations

from typing import Any

from gridfabric.keystore.v1 import keystore_pb2 as pb
from gridfabric.keystore.v1 import keystore_pb2_grpc

from agents.keystore.store import KeptShare, ShareStore
from fabric.clock import Clock, to_us
from fabric.errors import InvalidRequest
from fabric.logs import Logger
from fabric.rpc.peer import current_peer
from fabric.rpc.rules import Rule, full_user, user
from security.errors import SecurityError
from security.names import DistinguishedName
from security.sealing import KEY_BYTES, KEY_ID_BYTES
from security.secret_sharing import MAX_SHARES, Share
from security.voms import is_fqan, is_within

MAX_READER_LENGTH = 1024
RULES: dict[str, Rule] = {"PutShare": user, "GetShare": user, "SetReaders": full_user, "RemoveShare": full_user}
"""A job may read and write encrypted files; who else may read them it does not decide. Operators read no keys."""


class KeyStoreServicer(keystore_pb2_grpc.KeyStoreServicer):
    """One key store."""

    def __init__(self, store: ShareStore, *, clock: Clock, log: Logger) -> None:
        self._store, self._clock, self._log = store, clock, log
        self.given = 0
        """Shares given out since the start."""

    async def PutShare(self, request: pb.PutShareRequest, context: Any) -> pb.PutShareResponse:
        """See the proto."""
        peer = current_peer(context)
        key_id = _key_id(request.key_id)
        if not 2 <= request.threshold <= MAX_SHARES or not 1 <= request.x <= MAX_SHARES:
            raise InvalidRequest("SHARE_INVALID", f"share {request.x} of which {request.threshold} are needed is none")
        if len(request.share) != KEY_BYTES:
            raise InvalidRequest("SHARE_INVALID", f"a share has {KEY_BYTES} bytes, not {len(request.share)}")
        share = Share(request.x, request.share)
        now_us = to_us(self._clock.now())
        await self._store.put(KeptShare(key_id, peer.subject, peer.vo, share, request.threshold, (), now_us))
        self._log.audit("keystore.kept", **peer.trail, key=key_id.hex(), vo=peer.vo)
        return pb.PutShareResponse()

    async def GetShare(self, request: pb.GetShareRequest, context: Any) -> pb.GetShareResponse:
        """See the proto."""
        peer = current_peer(context)
        kept = await self._store.get(_key_id(request.key_id), peer)
        self._log.audit("keystore.used", **peer.trail, key=kept.key_id.hex(), owner=kept.owner, vo=kept.vo)
        self.given += 1
        return pb.GetShareResponse(x=kept.share.x, share=kept.share.values, threshold=kept.threshold)

    async def SetReaders(self, request: pb.SetReadersRequest, context: Any) -> pb.SetReadersResponse:
        """See the proto."""
        peer = current_peer(context)
        key_id = _key_id(request.key_id)
        grant, withdraw = ([_reader(text, peer.vo) for text in texts] for texts in (request.grant, request.withdraw))
        readers, threshold = await self._store.set_readers(key_id, peer, grant, withdraw)
        self._log.audit("keystore.readers_set", **peer.trail, key=key_id.hex(), granted=grant, withdrawn=withdraw)
        return pb.SetReadersResponse(readers=readers, threshold=threshold)

    async def RemoveShare(self, request: pb.RemoveShareRequest, context: Any) -> pb.RemoveShareResponse:
        """See the proto."""
        peer = current_peer(context)
        key_id = _key_id(request.key_id)
        if await self._store.remove(key_id, peer):
            self._log.audit("keystore.removed", **peer.trail, key=key_id.hex())
        return pb.RemoveShareResponse()


def _key_id(key_id: bytes) -> bytes:
    if len(key_id) != KEY_ID_BYTES:
        raise InvalidRequest("KEY_ID_INVALID", f"the id of a key has {KEY_ID_BYTES} bytes, not {len(key_id)}")
    return key_id


def _reader(text: str, vo: str) -> str:
    try:
        if len(text) > MAX_READER_LENGTH:
            raise ValueError("it is too long")
        if is_fqan(text):
            if not is_within(text, f"/{vo}"):
                raise ValueError(f"it is of another VO than {vo}")
            return text
        return str(DistinguishedName.parse(text))
    except (ValueError, SecurityError) as error:
        raise InvalidRequest(
            "READER_INVALID",
            f"{text[:200]!r} can be given no key ({str(error)[:200]}); name a person by DN, or a group or role of {vo}",
        ) from error
