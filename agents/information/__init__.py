"""The information system: agents publish GLUE 1.3 entries to their site, sites to the top, LDAP shows the same tree.

The tree, with the same names at a site's server and at the top, so that one command works at both:

    ldapsearch -x -H ldap://HOST:2170 -b o=grid '(objectClass=GlueCE)'

    o=grid
      GridFabricRegionID=<region server>,o=grid        GridFabricRegion: as GridFabricSite
      mds-vo-name=local,o=grid
        mds-vo-name=<SITE>,mds-vo-name=local,o=grid    GridFabricSite: GridFabricSiteState, ...Since, ...LastSeen,
                                                       ...Reason (who does not hear whom), ...Way (by which region)
          GlueSiteUniqueID=, GlueClusterUniqueID=, GlueCEUniqueID=, GlueSEUniqueID=, GlueServiceUniqueID=, ...
          GridFabricProducerID=<agent>                 GridFabricProducer: ...State, ...Since, ...LastSeen

A site's server answers the same below `mds-vo-name=<SITE>,o=grid` too, as EDG and LCG clients ask it. An agent with an
`ldap` port (gatekeeper, storage) shows its own entries there below `mds-vo-name=resource,o=grid`, whether or not its
site can be reached.

Operational attributes of each published entry (ask for `+`): GridFabricProducer, GridFabricProducedAt,
GridFabricValidUntil, GridFabricState.

States are `awaited`, `current`, `unreachable`, `withdrawn`. Nothing vanishes silently: when a producer is not heard in
time its entries stay, with GlueCEStateStatus, GlueSEStatus and GlueServiceStatus set to Unknown; after a grace they are
removed, except for GlueSite, and the state stays published. Who is heard again is back at once. A site server
publishes for its own site only, and an agent under its own name only: the session's identity decides.
"""
