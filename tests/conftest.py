"""What every test of the tree gets: the `program` marker, `no_cover` also in xdist's workers, no stopwatch."""

import os
import shutil
import sys
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# No test depends on speed: a machine that is busy with something else finds no other faults.
settings.register_profile("mgota", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("mgota"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") or os.environ.get("MGOTA_REQUIRE_ALL") else "mgota")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.program("curl")`: skip where the program is missing, and fail where all of them must be there."""
    for marker in item.iter_markers("program"):
        for name in marker.args:
            if shutil.which(name):
                continue
            if os.environ.get("MGOTA_REQUIRE_ALL") == "1":
                pytest.fail(f"the program {name} is not installed, and MGOTA_REQUIRE_ALL=1", pytrace=False)
            pytest.skip(f"the program {name} is not installed")


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """`no_cover` measures nothing.

    In a worker of xdist pytest-cov has started two measurements, one over the other, and its own `no_cover` stops the
    upper one only: the proofs took three times as long.
    """
    trace = sys.gettrace()
    if item.get_closest_marker("no_cover"):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(trace)
