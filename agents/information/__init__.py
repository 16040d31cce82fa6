"""The information system: agents publish GLUE entries to their site, sites to the top, and LDAP shows the same tree."""
