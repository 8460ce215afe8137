"""For all tests: property tests do not look at the clock. A busy machine may pause for seconds."""

from hypothesis import HealthCheck, settings

settings.register_profile("xpyd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("xpyd")
