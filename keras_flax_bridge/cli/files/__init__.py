"""What the commands do to files: convert, compare, eject, replace."""
