"""Facts about a graph, read without changing it: shapes, axes, linear maps, rotations, masks, attention blocks."""
