"""For all tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A machine that is busy with other work makes no test fail.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Nor does what is set for a grid that somebody uses here: see `grid env`.
for name in [name for name in os.environ if name.startswith(("GRIDFABRIC_", "X509_"))]:
    if name not in ("GRIDFABRIC_DRILL_OUT", "GRIDFABRIC_PROOF"):
        del os.environ[name]
