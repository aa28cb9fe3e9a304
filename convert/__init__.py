"""Weights between PyTorch and Flax: tables of rules, and the one engine that applies them."""
