"""Where a worker or its starter may be killed by a test (fabric/failpoints.py)."""

NAMES = (
    "worker.order.committed",  # in its row, nothing prepared
    "worker.directory.made",  # the job's directory is there, the starter has not heard of it
    "worker.start.ordered",  # the starter may have the order
    "worker.output.sent",  # the files of the output sandbox are at the gatekeeper, the end is not told
    "worker.report.sent",  # the end is told, perhaps
    "worker.row.deleted",  # acknowledged and out of the database; record and directory are there
    "starter.record.made",  # the key is used, nothing runs
    "starter.launched",  # a payload may run, its process id is not written
    "starter.started",  # its process id is written, the agent not told
    "starter.ended.written",  # how it ended is written, the agent not told
)
