"""Which atom of an attention is what: batch, heads, rows, columns or depth."""

from __future__ import annotations

from onnx_fuse.analysis.algebra.axes import Atom, Axis, atoms, index_atoms, merged, size
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.operands.operand import Operand
from onnx_fuse.analysis.scores.sums import Scores
from onnx_fuse.analysis.softmax.output import Output
from onnx_fuse.ir.graph import Node
from onnx_fuse.report import Code


class Misfit(Exception):
    """A part of an operand, or the output's projection, that doesn't fit the rest.

    The operand, `part` ("q", "k", "v"), is to enter as a value; at "output" the block is to end at
    its context.
    """

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.part = part


class Roles:
    """Sorts the atoms of one attention: `batch`, `heads`, `rows`, `columns`, `depth`.

    `heads` are `kv_heads`, then the query heads of each; `columns`, the softmax's axis, stand as in
    the keys' source. Heads that are known from the beginning are given, others are found.

    Raises: Misfit where a part of an operand has no place among them; Declined where the attention
    has none.
    """

    def __init__(
        self,
        node: Node,
        space: Space,
        scores: Scores,
        parts: dict[str, Operand],
        output: Output,
        heads: Axis = (),
    ) -> None:
        self.node, self.space = node, space
        self.scores, self.parts, self.output = scores, parts, output
        self._column = space.resolve(scores.column)
        self._check_pasts()
        self.depth = merged(space.resolve_index(scores.depth))
        self._sort([*atoms(space.resolve(heads))])

    def _check_pasts(self) -> None:
        """Keys and values have a past of one length, or neither has one.

        Where both enter as values, the graph goes on joining them.
        """
        pasts = {name: part.past for name, part in self.parts.items() if part.past is not None}
        if not any(self.parts[name].projection for name in pasts):
            for name in pasts:
                plain = self.parts[name].plain
                if plain is not None and plain.past is None:
                    raise Misfit(name)
        sizes = {
            name: (size(past.new), past.length, past.is_behind) for name, past in pasts.items()
        }
        if pasts and (set(pasts) != {"k", "v"} or sizes["k"] != sizes["v"]):
            raise Misfit(next(iter(pasts)))

    def positions(self, name: str) -> Axis:
        """Return the axis along which an operand's source runs: rows or (new) columns."""
        past = self.parts[name].past
        if name == "q":
            return self.rows
        return self.columns if past is None else past.new

    @property
    def turned(self) -> int:
        """How many columns stand last in the graph, and first in the operator.

        Raises: Misfit if a run only knows.
        """
        past = self.parts["k"].past
        if past is None or not past.is_behind:
            return 0
        number = past.length.as_int()
        if number is None:
            raise Misfit("k")
        return number

    def _head_atoms(self, name: str) -> list[Atom]:
        part = self.parts[name]
        if part.projection is None:
            return []
        inner = {*atoms(part.inner_depth)}
        columns = part.projection.column_atoms
        if not inner <= {*columns}:
            raise Misfit(name)
        return [atom for atom in columns if atom not in inner]

    def _sort(self, heads: list[Atom]) -> None:
        """Sort the atoms into batch, heads, rows, columns and depth."""
        for name in ("q", "k", "v"):
            heads += [atom for atom in self._head_atoms(name) if atom not in heads]
        depth_v = {*atoms(self.parts["v"].depth)}
        if self.output.projection is not None:
            summed = index_atoms(self.space.resolve_index(self.output.projection.summed))
            heads += [atom for atom in summed if atom not in heads and atom not in depth_v]
        columns = {*atoms(self._column)}
        seen = {name: {*part.index_atoms()} for name, part in self.parts.items()}
        depths = {
            *atoms(self.depth),
            *depth_v,
            *(a for p in self.parts.values() for a in atoms(p.inner_depth)),
        }
        projected = any(part.projection is not None for part in self.parts.values())
        if not heads and not projected and self.output.projection is None:
            heads = self._heads_of_values(columns)
        heads += self._heads_of_queries(heads, columns)
        if columns & {*heads} or any(atom in depths for atom in heads):
            raise Declined(Code.CHANNEL_ATTENTION, self.node)
        known_to_keys = seen["k"] | seen["v"]
        new = {a for p in self.parts.values() if p.past is not None for a in atoms(p.past.new)}
        other = columns | depths | new
        free = [atom for atom in self._in_order() if atom not in other]
        self.rows = tuple(a for a in free if a not in heads and a not in known_to_keys)
        self.batch = tuple(a for a in free if a not in heads and a in known_to_keys)
        self._check_pairs(seen)
        self.kv_heads = tuple(a for a in heads if a in known_to_keys)
        self.heads = (*self.kv_heads, *(a for a in heads if a not in known_to_keys))
        self.columns = tuple(a for a in self._in_order("k") if a in columns) or self._column
        for name in ("k", "v"):
            if self.parts[name].past is None and not columns <= seen[name]:
                raise Misfit(name)
        self._check_heads()
        self._check_columns()

    def _check_heads(self) -> None:
        """Raise Declined if how many heads there are is known to a run only."""
        if all(atom.extent.as_int() is not None for atom in self.heads):
            return
        value = self.scores.query.value
        at = value.producer or self.node
        raise Declined(Code.SHAPE_UNKNOWN, at, value=value.name, what="the number of heads")

    def _check_pairs(self, seen: dict[str, set[Atom]]) -> None:
        """Without rows of its own, each query has keys and values of its own.

        Where it has only one of the two, they are of pairs: the other would have to be repeated.

        Raises: Declined.
        """
        own = {*self.batch} & seen["q"] if not self.rows else set[Atom]()
        for name, other in (("k", "v"), ("v", "k")):
            if own & seen[name] - seen[other]:
                value = self.parts[name].source
                what = {"k": "keys", "v": "values"}[name]
                facts = {"value": value.name, "what": what}
                raise Declined(Code.PAIRWISE, value.producer or self.node, **facts)

    def _in_order(self, first: str = "q") -> list[Atom]:
        """Return all atoms in the order of the sources in which they stand, one operand's first."""
        found: list[Atom] = []
        for name in (first, *(n for n in ("q", "k", "v") if n != first)):
            part = self.parts[name]
            if part.joined:
                found += [a for a in dict.fromkeys(part.index_atoms()) if a not in found]
                continue
            ref = part.choices[0] if part.projection is None else part.projection.source
            summed = () if part.projection is None else index_atoms(part.projection.summed)
            found += [
                atom for atom in index_atoms(ref.index) if atom not in found and atom not in summed
            ]
        return found

    def _heads_of_values(self, columns: set[Atom]) -> list[Atom]:
        """Return the heads where nothing is projected: the axis right before rows and columns."""
        index = self.space.resolve_index(self.scores.index)
        if len(index) < 4:
            return []
        keys = {*self.parts["k"].index_atoms(), *self.parts["v"].index_atoms()}
        candidates = [a for a in atoms(index[1]) if a not in columns and a in keys]
        return candidates if all(a.extent.as_int() is not None for a in candidates) else []

    def _heads_of_queries(self, heads: list[Atom], columns: set[Atom]) -> list[Atom]:
        """Return the grouped heads that nothing projects: only queries have them.

        They could as well be rows of their keys' head. They are heads if the output has them behind
        the rows, beside its depth; or if they have sinks, which rows don't.
        """
        index = self.space.resolve_index(self.scores.index)
        projected = self.parts["q"].projection is not None or self.output.projection is not None
        if projected or len(index) < 4:
            return []
        known = columns | {*heads}
        known |= {a for name in ("k", "v") for a in self.parts[name].index_atoms()}
        found = [a for axis in index[1:-2] for a in atoms(axis) if a not in known]
        if self.scores.chain.sinks is None:
            made = index_atoms(self.space.resolve_index(self.output.choices[-1].index))
            rows = [place for place, atom in enumerate(made) if atom in atoms(index[-2])]
            behind = made[max(rows, default=-1) + 1 :]
            found = [a for a in found if a in behind]
        return found if all(a.extent.as_int() is not None for a in found) else []

    def _check_columns(self) -> None:
        """Check that a projection's columns, and its bias's, are heads and depth.

        Raises: Misfit.
        """
        for name, part in self.parts.items():
            if part.projection is None:
                continue
            if {*part.projection.column_atoms} - {*self.heads} - {*atoms(part.inner_depth)}:
                raise Misfit(name)
            if not part.projection.are_of_columns(part.projection.steps):
                raise Misfit(name)
