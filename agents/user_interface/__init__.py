"""The `grid` command: parse, call a client, print. No decision about jobs, files or trust is made here."""
