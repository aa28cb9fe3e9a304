"""`fmv2 train` and `fmv2 plan`, one file each."""
