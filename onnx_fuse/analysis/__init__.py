"""Facts about a graph, read without changing it: shapes, axes, projections, masks, attention."""
