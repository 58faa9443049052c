"""Trees of leaves: paths, differences, requirements on arrays, reports, and untrusted text from files."""
