"""The graph of a model's calls for the conversion."""
