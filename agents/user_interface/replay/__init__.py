"""`grid bench replay`: the jobs of a real log through a real grid."""
