"""The subcommands of `fmv2 convert`, one file each."""
