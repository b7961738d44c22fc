"""How results are shown: in a terminal, or as a page with drawings."""
