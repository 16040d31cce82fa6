"""Where bookkeeping may be killed by a test (fabric/failpoints.py)."""

NAMES = (
    "bookkeeping.record.committed",  # events kept, their sender not told
    "bookkeeping.archive.written",  # jobs are in the archive, and still in the database
)
