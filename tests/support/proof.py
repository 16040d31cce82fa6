"""How long the proofs run: `make proof TIMES=50`."""

from __future__ import annotations

import os

TIMES = int(os.environ.get("GRIDFABRIC_PROOF", "1"))
"""As often as in a usual test run."""
