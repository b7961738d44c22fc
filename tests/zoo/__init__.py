"""Checks whole folders of models: what is fused, and whether it still computes the same."""

from __future__ import annotations
