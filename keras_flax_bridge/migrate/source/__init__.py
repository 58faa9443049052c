"""The converted model as Python source."""
