"""Hypothesis as the rules' tests want it: no deadlines, because the machines that run them are shared."""

from hypothesis import HealthCheck, settings

settings.register_profile("rules", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rules")
