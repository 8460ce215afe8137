"""For all tests: property tests do not look at the clock, as a busy machine may pause for seconds;
and Triton kernels run under Triton's interpreter where there is no GPU."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports triton.
if not Path("/proc/driver/nvidia").exists():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("xpyd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("xpyd")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share servers share a process, and come one after the other."""
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class ByServers(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "clients" if file.startswith("tests/clients/") else file

    return ByServers(config, log)
