"""A world of faces made from nothing, with every cause of every picture known exactly."""
