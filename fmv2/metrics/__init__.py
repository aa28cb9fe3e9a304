"""How well pictures do what they were asked to: the exact measures of the procedural world."""
