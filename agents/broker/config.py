"""Options of the broker agent."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.broker.blacklist import HALF_LIFE_S


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """The agent's own section of the cluster file."""

    max_file_bytes: int = field(default=10 * 1024 * 1024, metadata={"minimum": 1})
    """One input sandbox file."""
    max_sandbox_bytes: int = field(default=50 * 1024 * 1024, metadata={"minimum": 1})
    """The input sandbox of one job."""
    max_jobs: int = field(default=1_000_000, metadata={"minimum": 1})
    """Unfinished jobs of everybody."""
    max_jobs_per_owner: int = field(default=200_000, metadata={"minimum": 1})
    """Unfinished jobs of one user."""
    max_jobs_per_vo: int = field(default=500_000, metadata={"minimum": 1})
    """Unfinished jobs of one VO."""
    submissions_per_s: float = field(default=50.0, metadata={"minimum": 0.01})
    """Of one user in the long run; ten seconds' worth may come at once."""
    max_kept_sandbox_bytes: int = field(default=20 * 1024**3, metadata={"minimum": 1})
    """Input sandbox files kept of one user."""
    match_interval_s: float = field(default=0.02, metadata={"minimum": 0.001})
    """At least this between two matching passes, more while many are matched; what comes meanwhile is matched then."""
    update_gather_s: float = field(default=0.03, metadata={"minimum": 0.0, "maximum": 5.0})
    """Updates of a CE that come within this time share one transaction; when many come, they gather longer."""
    queue_ahead_s: float = field(default=2.0, metadata={"minimum": 0.0})
    """A CE's queue is kept filled for this long at the speed at which it ends our jobs."""
    queue_factor: float = field(default=2.0, metadata={"minimum": 0.0})
    """Jobs queued at a CE per slot, beyond its free slots, whatever its speed."""
    queue_least: int = field(default=2, metadata={"minimum": 0})
    """Jobs queued at a CE that has any slot."""
    deliver_batch: int = field(default=500, metadata={"minimum": 1, "maximum": 500})
    """Jobs in one call to a gatekeeper."""
    backoff_first_s: float = field(default=0.2, metadata={"minimum": 0.01})
    backoff_most_s: float = field(default=10.0, metadata={"minimum": 0.01})
    """Pauses after a CE did not answer or did not take jobs."""
    take_back_after_s: float = field(default=5.0, metadata={"minimum": 0.0})
    """A CE that cannot be connected to for this long loses the jobs that were never sent to it."""
    blame_half_life_s: float = field(default=HALF_LIFE_S, metadata={"minimum": 0.1})
    """What speaks against a CE that fails jobs counts half after this; see `blacklist.py`."""
    repeat_cancel_s: float = field(default=15.0, metadata={"minimum": 0.1})
    """A cancellation that the CE acknowledged and that shows no effect is repeated after this."""
    reconcile_after_s: float = field(default=120.0, metadata={"minimum": 1.0})
    """Jobs at a CE that were not heard of for this long are asked for by name."""
    lease_s: float = field(default=0.0, metadata={"minimum": 0.0, "maximum": 86_400.0})
    """One of several brokers: its successor takes over by itself when bookkeeping has not heard of it for so long, at
    least some times what bookkeeping may take to answer; 0: an operator has to say so."""
    proxy_warning_s: float = field(default=1800.0, metadata={"minimum": 0.0})
    """A note is logged when the owner's delegated proxy ends within this time."""
    proxy_poll_s: float = field(default=2.0, metadata={"minimum": 0.05})
    renew_before_s: float = field(default=3600.0, metadata={"minimum": 0.0})
    """The proxy of jobs with a credential store (`MyProxyServer`) is renewed when less than this, or half of its life,
    is left: early enough for somebody to act when it fails."""
    renew_retry_s: float = field(default=60.0, metadata={"minimum": 0.01})
    renewed_lifetime_s: float = field(default=12 * 3600.0, metadata={"minimum": 60.0})
    """What the credential store is asked for; it may give less."""
    myproxy_servers: tuple[str, ...] = ()
    """Further credential stores that jobs may name, host:port; the grid's own are known."""
    sandbox_keep_s: float = field(default=3600.0, metadata={"minimum": 1.0})
    """Input sandbox files that no unfinished job needs are kept this long after their last use."""
    job_keep_s: float = field(default=14 * 86400.0, metadata={"minimum": 1.0})
    """Ended jobs are known to the broker this long; bookkeeping keeps their history."""
    match_expiry_s: float = field(default=86_400.0, metadata={"minimum": 1.0})
    """A job that has found no CE for this long is aborted."""
    janitor_interval_s: float = field(default=60.0, metadata={"minimum": 0.1})
    registered_wait_s: float = field(default=1.0, metadata={"minimum": 0.0})
    """Submit waits for bookkeeping to know the jobs, so that the next question is answered, unless it hears nothing for
    so long."""
