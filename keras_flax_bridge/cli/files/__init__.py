"""File operations of the commands: convert, compare, eject, replace."""
