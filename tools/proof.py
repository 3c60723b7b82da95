"""Prove that no power cut loses a device: every pair of cuts, and many at random, on both cores.

    tools/proof.py --help

What is proven, and how, stands beside the tests: `tests/proof/provers.py` and `proof_runner.py`.
"""

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "tests" / "proof")
)  # in each process: they import this file

if __name__ == "__main__":
    sys.exit(import_module("proof_runner").main())
