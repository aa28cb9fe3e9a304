"""Runs by name: one file each; its header says purpose, command, hardware, time and result."""
