"""Disables the recogniser's checks one at a time, to see that a test notices each."""
