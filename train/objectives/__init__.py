"""What can be learnt: one objective a file, all run by the same step and loop."""
