"""What both ends of a connection must know alike: sizes, and keys of the metadata."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""One message. Streams send data in pieces of 1 MiB."""
HARD_MESSAGE_BYTES = 2 * MAX_MESSAGE_BYTES
"""What grpc itself cuts off. In between we refuse with a sentence that both ends can read."""
STREAM_WINDOW_BYTES = 4 << 20
"""What a sender may have under way on one stream before the receiver reads. grpc's own estimate on a fast link is too
small for pieces of 1 MiB: both ends then wait for each other (a third of the throughput, measured)."""
FRAME_BYTES = 256 * 1024
"""Of one HTTP/2 frame: a piece of 1 MiB comes in 4 parts instead of 64."""
SESSION_KEY = "gridfabric-session"
TRACE_KEY = "gridfabric-trace"
