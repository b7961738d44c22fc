"""Models made at random, against load, explain, fuse and unfuse: `make fuzz`."""

from __future__ import annotations
