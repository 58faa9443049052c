"""Builders of the models in the contract table, by theme; each gives a compiled model, seeded."""
