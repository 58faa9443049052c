"""Steps, the loop, and what a run needs to go on where it ended."""
