"""The nets, one file each, and the layers they share."""
