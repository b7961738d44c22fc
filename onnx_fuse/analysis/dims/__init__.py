"""Extents as polynomials of the inputs' symbols: arithmetic, order and what equations tell."""
