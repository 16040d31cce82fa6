"""Shares of the keys of encrypted files."""
