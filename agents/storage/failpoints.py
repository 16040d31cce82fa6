"""Where a storage element may be killed by a test (fabric/failpoints.py)."""

NAMES = (
    "storage.put.reserved",  # space booked, no byte on disk
    "storage.put.written",  # all bytes in incoming/, not synced
    "storage.put.linked",  # under its final name, synced, not in the database
    "storage.put.committed",  # in the database, not answered
    "storage.together.written",  # many small files: under their final names, not synced
    "storage.together.linked",
    "storage.together.committed",
    "storage.renew.written",  # a file that is moved or repaired: the same steps; its row means the old bytes
    "storage.renew.linked",
    "storage.renew.committed",  # its row means the new bytes, the old ones are still on disk
    "storage.archive.written",  # whole and verified on tape, no row says so
    "storage.archive.committed",
    "storage.purge.committed",  # its row means the tape, the bytes are still on disk
    "storage.drop.committed",  # a copy out of the database, its bytes still on disk
    "storage.remove.committed",  # out of the database, bytes still on disk
)
