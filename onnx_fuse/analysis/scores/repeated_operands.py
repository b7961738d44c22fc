"""Operands that were repeated along each other's axes before anything was computed of them.

Where queries and keys are brought to one shape first, each has an element for every pair of them;
what is computed of it is the same along the other's axis all the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx_fuse.analysis.algebra.axes import Atom, atoms, fixed, size
from onnx_fuse.analysis.algebra.formula import Formula, Made
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views

_DEEPEST = 8  # operators above each other that are looked through
# Operators each of whose elements is computed from the elements of all inputs at its own place.
_ELEMENTWISE = frozenset(
    {
        *("Abs", "Add", "Cast", "CastLike", "Clip", "Div", "Exp", "Max", "Min", "Mul", "Neg"),
        *("Pow", "Reciprocal", "Sqrt", "Sub", "Tanh"),
    }
)
_REDUCTIONS = ("ReduceL2", "ReduceMean", "ReduceMax", "ReduceSum", "ReduceSumSquare")


def without_repeats(ref: Ref, along: Iterable[Atom], views: Views) -> Ref:
    """Return the same numbers, read at the first place of what they don't vary along.

    `along` are the atoms that are asked about.
    """
    ref = ref.resolve(views.space)
    same = {*along} - _varying(ref, Formula(views), _DEEPEST)
    index = tuple(
        fixed(0, size(axis)) if axis and {*atoms(axis)} <= same else axis for axis in ref.index
    )
    return Ref(ref.value, index)


def _varying(ref: Ref, formula: Formula, deepest: int) -> set[Atom]:
    """Return the atoms along which elements may vary."""
    views, node = formula.views, ref.value.producer
    own = views.space.atoms_of(*ref.index)
    if node is None or not deepest:
        return own
    below = views.pull(ref)
    if below is not None:
        return own & _varying(below, formula, deepest - 1)
    if ref.value is not node.outputs[0]:
        return own
    if node.op in _REDUCTIONS:
        reduced = formula.reduced(ref, node.op)
        sources = [None if reduced is None else reduced.source]
    elif node.op in _ELEMENTWISE:
        made = Made(node, ref.index)
        given = [at for at, value in enumerate(node.inputs) if value is not None]
        sources = [formula.operand(made, at) for at in given]
    else:
        return own
    found: set[Atom] = set()
    for source in sources:
        found |= own if source is None else _varying(source, formula, deepest - 1)
    return own & found
