"""The soak for 15 seconds; `python -m benchmarks.soak` is the long form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(170)
def test_the_ledger_balances_in_a_hostile_world():
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.25", "--rate", "300"]
    found = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "the ledger balances" in found.stdout
