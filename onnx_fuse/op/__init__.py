"""The operators, in one place: tables, panel layout, float64 reference, function body."""

from __future__ import annotations
