"""What every agent needs and no agent owns: errors, clock, logs, store, RPC with sessions, and the agent shell."""
