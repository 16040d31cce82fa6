"""Processes that carry one Ray node of ours: the launcher, the fork server, the driver."""
