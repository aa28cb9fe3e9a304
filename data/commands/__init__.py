"""The subcommands of `fmv2 data`, one file each."""
