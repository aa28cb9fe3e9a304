"""The main job on the embedded default, end to end: `fmv2 quickstart`."""
