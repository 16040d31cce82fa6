"""Where a transfer agent may be killed by a test (fabric/failpoints.py)."""

NAMES = (
    "transfer.submit.committed",  # files queued, the user not told
    "transfer.copy.answered",  # the destination has copies, their SURLs are not kept
    "transfer.copy.kept",  # SURLs kept, the catalogue not told
    "transfer.register.answered",  # the catalogue knows the replicas, they are not known to be registered
    "transfer.clean.answered",  # a copy that nobody wants is gone, which is not kept
)
