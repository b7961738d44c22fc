"""The graph representation: reading (`load`), changing (`graph`), writing (`save`), printing (`text`)."""

from __future__ import annotations
