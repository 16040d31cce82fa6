"""Calls over a SecureChannel: unary with a deadline, streams that open their session by themselves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import grpc
import grpc.aio
from cryptography import x509
from grpc._cython import cygrpc as _cygrpc  # pyright: ignore[reportMissingTypeStubs]

from fabric.bell import Bell
from fabric.clock import Clock
from fabric.errors import DeadlineExceeded, GridError, Unavailable, from_rpc_error

T = TypeVar("T")
cygrpc: Any = _cygrpc  # has no types

DEFAULT_DEADLINE_S = 30.0
"""Of a unary call whose caller gave none."""
RECONNECT_WAIT_S = 3.0
"""How long one call waits for grpc to reconnect to a server that was just seen to be up."""
OPENING_DEADLINE_S = 30.0
"""Of a stream: from the call until the server has accepted it."""
SESSION_REFUSED_KEY = "gridfabric-session-refused"
"""Trailing metadata on errors that are about the session of this very hop, not of one further on."""

ACCEPTED_KEY = "gridfabric-accepted"
"""Initial metadata of a stream that the server let in; a refused one has only a status."""

Metadata = tuple[tuple[str, str], ...]
Requests = AsyncIterable[Any] | Iterable[Any]


@dataclass(eq=False)
class Opened:
    """A pinned connection, with grpc's own callable for each method used on it."""

    channel: grpc.aio.Channel
    chain: tuple[x509.Certificate, ...]
    leaf_der: bytes
    generation: int
    """Of the trust that the chain was judged by."""
    _callables: dict[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])
    _calls: set[Any] = field(default_factory=set[Any])
    _ended: Bell = field(default_factory=Bell)

    def began(self, call: Any) -> Any:
        """Count a call of grpc until it has ended; gives it back."""
        self._calls.add(call)
        call.add_done_callback(self._over)
        return call

    def _over(self, call: Any) -> None:
        self._calls.discard(call)
        self._ended.ring()

    async def idle(self, limit_s: float) -> None:
        """Until no call is left on it, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._calls:
                    await self._ended.wait(limit_s, self._ended.rung)

    def callable_of(self, kind: tuple[str, str], serialize: Any, parse: Any) -> Any:
        """grpc's callable for (`unary_unary` and the like, method)."""
        found = self._callables.get(kind)
        if found is None:
            make = getattr(self.channel, kind[0])
            found = make(kind[1], request_serializer=serialize, response_deserializer=parse)
            self._callables[kind] = found
        return found

    async def connected(self, limit_s: float) -> bool:
        """True once grpc has a connection; it is told to make one. False if there is none within the time."""
        try:
            async with asyncio.timeout(limit_s):
                state = self.channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
        except (TimeoutError, grpc.aio.UsageError):  # the latter: it was closed meanwhile
            return False
        return True


class Caller(Protocol):
    """What calls need from their channel."""

    @property
    def peer(self) -> str:
        """`host:port`."""
        ...

    @property
    def clock(self) -> Clock:
        """For deadlines."""
        ...

    def ready_now(self) -> tuple[Opened, Metadata] | None:
        """As `ready` if that needs no waiting, else None."""
        ...

    async def ready(self) -> tuple[Opened, Metadata]:
        """The connection and this call's metadata."""
        ...

    async def prepare_retry(self, error: grpc.aio.AioRpcError, used: Opened, metadata: Metadata) -> GridError | None:
        """None if the call may be made once more; then the connection is there again."""
        ...


class Retries:
    """Which repetitions one call has had: one for a stale session and one for a lost connection, in any order.

    A server that was down and is back needs both: first there is no connection, then nobody knows the session.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._had: set[str] = set()

    async def prepare(self, error: grpc.aio.AioRpcError, used: Opened, metadata: Metadata) -> None:
        """Returns when the call may be made once more. Raises GridError with why not."""
        cause = "session" if refused_session(error) else "connection"
        if cause in self._had:
            raise from_rpc_error(error, self._caller.peer) from None
        self._had.add(cause)
        refused = await self._caller.prepare_retry(error, used, metadata)
        if refused is not None:
            raise refused from None


class UnaryCallable:
    """`await stub.Method(request, timeout=...)`. Raises GridError subclasses only."""

    def __init__(self, caller: Caller, kind: tuple[str, str], serialize: Any, parse: Any) -> None:
        self._caller, self._kind, self._serialize, self._parse = caller, kind, serialize, parse

    async def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, str]] | None = None,
        wait_for_ready: bool = False,
    ) -> Any:
        """The response. `timeout` covers everything: connecting, the session, repetitions."""
        limit_s = DEFAULT_DEADLINE_S if timeout is None else timeout
        caller = self._caller
        until = caller.clock.monotonic() + limit_s
        more = tuple(metadata) if metadata is not None else ()
        retries = Retries(caller)
        left_s = limit_s
        while True:
            used, own = caller.ready_now() or await ready_within(caller, left_s)
            try:
                start = self._callable(used)
                return await used.began(
                    start(request, timeout=left_s, metadata=own + more, wait_for_ready=wait_for_ready)
                )
            except asyncio.CancelledError:
                raise_if_not_ours(caller.peer)
                raise
            except grpc.aio.AioRpcError as error:
                await retries.prepare(error, used, own)
            left_s = max(until - caller.clock.monotonic(), 0.001)

    def _callable(self, used: Opened) -> Any:
        return used.callable_of(self._kind, self._serialize, self._parse)


class StreamCallable:
    """Makes a StreamCall: `stub.Watch(request)`, `stub.Put(requests)`, `stub.Work()`."""

    def __init__(self, caller: Caller, kind: tuple[str, str], serialize: Any, parse: Any) -> None:
        self._caller, self._kind, self._serialize, self._parse = caller, kind, serialize, parse

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, str]] | None = None,
        request_iterator: Requests | None = None,
    ) -> StreamCall:
        """`request` is one message, or for a streamed request an (async) iterable; None: use `StreamCall.write`."""
        requests = request if request is not None else request_iterator
        return StreamCall(
            self._caller, self._kind, self._serialize, self._parse, requests, timeout, tuple(metadata or ())
        )


class StreamCall:
    """One streaming call. Iterate it, or `read`; `write` and `done_writing` where the request is streamed without an
    iterable; `await` it where there is one response.

    Messages are handed to the core below grpc's own `write`: that one, when the server ended the call while a message
    was on its way, makes the status of the call INTERNAL before it has looked at the status that the server sent.

    Requests are not touched before the server has accepted the call, so a stale session is renewed unnoticed. Raises
    GridError subclasses only, and what the given iterable of requests raised. Usable as an async context manager, which
    cancels the call at the end.
    """

    def __init__(
        self,
        caller: Caller,
        kind: tuple[str, str],
        serialize: Any,
        parse: Any,
        requests: Any,
        timeout: float | None,
        metadata: Metadata,
    ) -> None:
        self._caller, self._kind, self._serialize, self._parse = caller, kind, serialize, parse
        self._requests, self._timeout, self._metadata = requests, timeout, metadata
        self._raw: Any = None
        self._source_failure: BaseException | None = None
        self._cancelled_here = False
        self._half_closed = False
        self._writing = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._sender: asyncio.Task[None] | None = None
        self._opening = asyncio.create_task(self._open(), name=f"open {kind[1]} at {caller.peer}")
        self._opening.add_done_callback(_look_at_failure)

    # -- opening -----------------------------------------------------------------------------------------------------

    async def _open(self) -> Any:
        try:
            async with asyncio.timeout(OPENING_DEADLINE_S):
                retries = Retries(self._caller)
                while True:
                    raw, failure, used, own = await self._attempt()
                    if failure is None:
                        break
                    await retries.prepare(failure, used, own)
        except TimeoutError:
            raise DeadlineExceeded(
                "DEADLINE_EXCEEDED",
                f"{self._caller.peer} did not accept a stream within {OPENING_DEADLINE_S:g} s; try again",
            ) from None
        self._raw = raw
        if self._requests is not None and self._kind[0] != "unary_stream":
            self._sender = asyncio.create_task(self._send_all(raw), name=f"send {self._kind[1]} to {self._caller.peer}")
            self._sender.add_done_callback(_look_at_failure)
            raw.add_done_callback(self._call_ended)
        return raw

    def _call_ended(self, _raw: Any) -> None:
        if self._sender is not None:
            self._sender.cancel()

    async def _attempt(self) -> tuple[Any, grpc.aio.AioRpcError | None, Opened, Metadata]:
        used, own = await self._caller.ready()
        start = used.callable_of(self._kind, self._serialize, self._parse)
        options: dict[str, Any] = {"timeout": self._timeout, "metadata": own + self._metadata}
        raw = used.began(start(self._requests, **options) if self._kind[0] == "unary_stream" else start(**options))
        try:
            first = await raw.initial_metadata()
            accepted_there = any(key == ACCEPTED_KEY for key, _ in first or ())
            if not accepted_there and await raw.code() is not grpc.StatusCode.OK:
                return None, await _failure_of(raw), used, own
            return raw, None, used, own
        except BaseException:
            raw.cancel()
            raise

    async def _send_all(self, raw: Any) -> None:
        """The caller's requests, from the moment on when the server has accepted the call, until it is over."""
        requests: Any = self._requests
        try:
            if hasattr(requests, "__aiter__"):
                async for request in requests:
                    if not await self._send(raw, request):
                        return
            else:
                for request in requests:
                    if not await self._send(raw, request):
                        return
            await self._half_close(raw)
        except asyncio.CancelledError:
            raw.cancel()
            raise
        except BaseException as error:
            self._source_failure = error
            raw.cancel()

    async def _send(self, raw: Any, request: Any) -> bool:
        """False if the call is over; then its status tells why, once everything before it was read."""
        data = request if isinstance(request, bytes) else self._serialize(request)
        async with self._writing:
            if raw.done():
                return False
            if self._half_closed:
                raise asyncio.InvalidStateError("a stream is written to after done_writing()")
            try:
                await raw._cython_call.send_serialized_message(data)
            except asyncio.CancelledError:
                raw.cancel()  # the message may be half sent
                raise
            except cygrpc.InternalError:
                return False
            return True

    async def _half_close(self, raw: Any) -> None:
        async with self._writing:
            self._half_closed = True
            with contextlib.suppress(cygrpc.InternalError):  # the call is over, and its status tells why
                await raw.done_writing()

    async def _opened(self) -> Any:
        return self._raw if self._raw is not None else await asyncio.shield(self._opening)

    # -- using -------------------------------------------------------------------------------------------------------

    async def accepted(self) -> StreamCall:
        """Wait until the server has accepted the call. Raises why not."""
        await self._opened()
        return self

    async def read(self) -> Any:
        """The next response, `grpc.aio.EOF` at the end."""
        raw = await self._opened()
        try:
            async with self._reading:
                return await raw.read()
        except grpc.aio.AioRpcError as error:
            raise self._as_error(error) from None
        except asyncio.CancelledError:
            self._explain_cancellation(raw)
            raise

    async def write(self, request: Any) -> None:
        """Send one request (a message, or the bytes of one); waits while the peer does not take more. Raises why the
        call is over, if it is."""
        raw = await self._opened()
        if not await self._send(raw, request):
            raise await self._ended(raw)

    async def send(self, request: Any) -> bool:
        """As `write`, but False if the call is over: reading on or awaiting it tells how."""
        return await self._send(await self._opened(), request)

    async def done_writing(self) -> None:
        """No more requests will follow."""
        await self._half_close(await self._opened())

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._responses()

    async def _responses(self) -> AsyncIterator[Any]:
        raw = await self._opened()
        while True:
            try:
                async with self._reading:
                    response = await raw.read()
            except grpc.aio.AioRpcError as error:
                raise self._as_error(error) from None
            except asyncio.CancelledError:
                self._explain_cancellation(raw)
                raise
            if response is cygrpc.EOF:
                return
            yield response

    def __await__(self) -> Any:
        return self._response().__await__()

    async def _response(self) -> Any:
        raw = await self._opened()
        try:
            return await raw
        except grpc.aio.AioRpcError as error:
            raise self._as_error(error) from None
        except asyncio.CancelledError:
            self._explain_cancellation(raw)
            raise

    def cancel(self) -> bool:
        """End the call now. True if it was not over. Who waits for it gets CancelledError."""
        self._cancelled_here = True
        if self._raw is not None:
            return bool(self._raw.cancel())
        return self._opening.cancel()

    def done(self) -> bool:
        """True when the call is over."""
        return bool(self._raw.done()) if self._raw is not None else self._opening.done()

    async def __aenter__(self) -> StreamCall:
        return await self.accepted()

    async def __aexit__(self, *_exc: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        opening = getattr(self, "_opening", None)
        if opening is not None and not opening.done() and not opening.get_loop().is_closed():
            opening.cancel()

    def _as_error(self, error: grpc.aio.AioRpcError) -> BaseException:
        return self._source_failure or from_rpc_error(error, self._caller.peer)

    def _explain_cancellation(self, raw: Any) -> None:
        """grpc cancels a call when its iterable of requests raised or its channel was closed: say so instead."""
        if self._source_failure is not None and raw.cancelled():
            raise self._source_failure
        if not self._cancelled_here and raw.cancelled():
            raise_if_not_ours(self._caller.peer)

    async def _ended(self, raw: Any) -> BaseException:
        """Why the call is over. grpc holds the status back until everything that came before it was read."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while self._kind[0] == "stream_stream" and not raw.done():
                async with self._reading:
                    await raw.read()
        if await raw.code() is grpc.StatusCode.OK:
            return Unavailable("STREAM_ENDED", f"{self._caller.peer} ended the stream; open it again")
        return self._as_error(await _failure_of(raw))


async def each_within(stream: AsyncIterable[T], silence_s: float, reason: str, sentence: str) -> AsyncGenerator[T]:
    """The messages of a stream until it ends. Raises Unavailable(`reason`) after a silence: the network may drop
    packets without a word."""
    messages = aiter(stream)
    while True:
        try:
            async with asyncio.timeout(silence_s):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Unavailable(reason, sentence) from None
        yield message


async def ready_within(caller: Caller, limit_s: float) -> tuple[Opened, Metadata]:
    """`caller.ready()` with a deadline. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(limit_s):
            return await caller.ready()
    except TimeoutError:
        raise DeadlineExceeded(
            "DEADLINE_EXCEEDED",
            f"no session with {caller.peer} within {limit_s:g} s; the call was not made",
            peer=caller.peer,
        ) from None


def raise_if_not_ours(peer: str) -> None:
    """After a CancelledError: Unavailable CALL_CANCELLED if this task was not told to end, but its connection was
    closed."""
    task = asyncio.current_task()
    if task is not None and task.cancelling() == 0:
        raise Unavailable(
            "CALL_CANCELLED", f"the connection to {peer} was closed while the call ran; try again", peer=peer
        ) from None


def refused_session(error: grpc.aio.AioRpcError) -> bool:
    """True if the server itself refused the session of the call (and not a service further on)."""
    return any(key == SESSION_REFUSED_KEY for key, _ in cast("Any", error.trailing_metadata()) or ())


def not_connected(error: grpc.aio.AioRpcError) -> bool:
    """True if the call certainly never left: there was no connection."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and (error.details() or "").startswith(
        "failed to connect to all"
    )


async def _failure_of(raw: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await raw.code(), await raw.initial_metadata(), await raw.trailing_metadata(), details=await raw.details()
    )


def _look_at_failure(task: asyncio.Task[Any]) -> None:
    """A call that nobody waits for must not leave a warning behind."""
    if not task.cancelled():
        task.exception()
