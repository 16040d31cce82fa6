"""Where a gatekeeper may be killed by a test (fabric/failpoints.py)."""

NAMES = (
    "gatekeeper.sandbox.written",  # all bytes of a file, synced, under a name of its own
    "gatekeeper.sandbox.linked",  # under its hash, in no row
    "gatekeeper.turn.committed",  # jobs taken on or ended; nobody told, nothing ordered
    "gatekeeper.turn.performed",  # told and ordered, as far as streams have taken it
)
