"""`grid gstat`: what the sites of the grid say of themselves, added up by region, checked, and put on a map.

Everything is read by LDAP from the top server and the sites' own servers, as any user could.
"""
