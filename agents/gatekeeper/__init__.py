"""The computing element: authenticates, maps to an account, queues durably, and hands jobs to this site's workers."""
