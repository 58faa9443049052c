"""Files that attackers and accidents write, taken through every door of the package."""
