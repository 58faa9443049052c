"""Rules: the Flax counterpart of each kind of layer."""
