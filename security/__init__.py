"""Grid security: names, credentials, RFC 3820 proxies, trust, validation, namespaces, map files and pool accounts.

Usable alone: it knows nothing of gRPC, Ray or jobs, writes no log, reads no clock (every `now` is an argument, aware
UTC)
and no environment unless handed one.
"""
