"""Softmax however it is written, and the way down to the values and the output projection."""
