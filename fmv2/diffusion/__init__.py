"""Noise schedules, samplers and guidance: pure functions, no nets."""
