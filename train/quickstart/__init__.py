"""The main job on the embedded default, end to end; it becomes `fmv2 quickstart` when that default
is trained."""
