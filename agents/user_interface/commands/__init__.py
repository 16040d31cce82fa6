"""The command tree: signatures, help and examples. Everything heavy is imported inside the functions."""
