"""Trees of leaves: the paths, what differs, what an array must be, and text that came out of a file."""
