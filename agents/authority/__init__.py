"""The certification authority as a grid service: certificates, revocation, the list by HTTP."""
