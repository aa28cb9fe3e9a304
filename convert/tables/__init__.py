"""One table of weight rules per net."""
