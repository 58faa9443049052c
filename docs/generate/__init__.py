"""Writes the parts of pages that are made from tables; `tests/docs` fails where a page is out of date."""
