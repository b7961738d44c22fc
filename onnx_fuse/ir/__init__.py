"""The graph representation: read (`load`), change (`graph`), write (`save`), print (`text`)."""

from __future__ import annotations
