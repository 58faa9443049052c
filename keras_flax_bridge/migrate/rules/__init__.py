"""Rules: the Flax counterpart of each Keras layer class."""
