"""Nodes that break their operators' schemas, against which nobody checks them."""

from __future__ import annotations

MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What reading such a node may end in: a missing input or attribute shows as one of these."""
