"""The whole product, killed, stopped and short of room at random for two minutes."""

import re
import subprocess
import sys

import pytest


@pytest.mark.alone  # its faults hit what it waits for, not what other tests do beside it
@pytest.mark.timeout(900)
def test_a_disturbed_day_ends_with_the_results_of_a_calm_one() -> None:
    day = subprocess.run(
        [sys.executable, "-m", "tests.soak.chaos", "--minutes", "2", "--seed", "1"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert day.returncode == 0, day.stdout[-2000:] + day.stderr[-4000:]
    assert "datasets, weights, predictions and reports are those of a calm day" in day.stdout
    assert re.search(r" rounds; [1-9]\d* faults survived", day.stdout)
