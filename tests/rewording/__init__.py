"""Other words for the same: rules by which a model's nodes are written in another way."""

from __future__ import annotations

from tests.rewording import arithmetic, products, views  # noqa: F401  (each enters its rules)
from tests.rewording.wording import RULES, reword

__all__ = ["RULES", "reword"]
