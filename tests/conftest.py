"""For all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A machine that is busy with other work makes no test fail.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
