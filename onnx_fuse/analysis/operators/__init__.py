"""Operators that are attention already, in the terms of what is written out."""
