"""Shapes, types, contents and constants of a graph's values, found without running it."""
