"""Logging and bookkeeping: every job's event history and the state computed from it."""
