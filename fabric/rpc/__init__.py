"""gRPC with grid security: sessions from proxy chains, a rule on every method, typed errors, channels, delegation."""
