"""Subcommands of `fmv2` that belong to no group, one file each."""
