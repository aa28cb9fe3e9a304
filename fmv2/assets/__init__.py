"""What is shipped with the code."""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
"""The embedded default: a model folder, see its README."""

SCORER = Path(__file__).parent / "scorer"
"""What judges its pictures, see `fmv2.metrics.scorer`."""
