"""Writes the converted model as Python source."""
