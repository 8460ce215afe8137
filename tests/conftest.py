"""For all tests: property tests do not look at the clock, as a busy machine may pause for seconds;
and Triton kernels run under Triton's interpreter where there is no GPU."""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

# Before anything imports triton.
if not Path("/proc/driver/nvidia").exists():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("xpyd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("xpyd")
