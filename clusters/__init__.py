"""From a grid description (`*.toml`) to running agents on real hosts, and back."""
