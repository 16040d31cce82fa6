"""The VO server: who belongs to a virtual organisation, by gRPC and as an LDAP tree."""
