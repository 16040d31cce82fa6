"""gRPC with grid security: sessions from proxy chains, a rule on every method, typed errors, channels, delegation."""

import os

# grpc's C core writes to standard error whenever a peer misbehaves; who calls is told by an error, operators by the
# log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
