"""Axes as indices of atoms: views, contractions and formulas read in these terms."""
