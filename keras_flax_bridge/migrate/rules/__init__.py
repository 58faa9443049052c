"""One rule for a kind of layer: what it is in Flax."""
