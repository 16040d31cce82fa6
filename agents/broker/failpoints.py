"""Where a broker may be killed by a test (fabric/failpoints.py)."""

NAMES = (
    "broker.sandbox.written",  # all bytes of a file, under a name of its own
    "broker.sandbox.linked",  # under its hash and synced, in no row
    "broker.submit.committed",  # jobs accepted, the user not told
    "broker.match.committed",  # jobs given to CEs, nothing sent
    "broker.deliver.marked",  # a Submit may have been sent, and was not
    "broker.deliver.answered",  # the CE has the jobs, they are not known to be there
    "broker.update.received",  # what a CE tells of jobs, not kept
    "broker.purge.answered",  # the CE has forgotten jobs, they are not known to be gone
)
