"""The graph of a model's calls, as the conversion sees it."""
