"""What multiplies weights on their way to the values: constants, and numbers that rows have."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.linear import Step, scale_by, step_atoms
from onnx_fuse.analysis.algebra.nodes import only_reader
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.scores.chain import Placed
from onnx_fuse.analysis.softmax.values import Values
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code


@dataclass
class Scalings:
    """Factors of the weights over one softmax's `column`, by the nodes that multiply by them."""

    views: Views
    column: Axis
    found: dict[Node, Step | Placed] = field(default_factory=dict)

    def passed(self, node: Node, ref: Ref) -> Ref | None:
        """Return the weights times or by constants, or times what rows have, and note these."""
        output = node.outputs[0]
        if node.op not in ("Mul", "Div") or output is None:
            return None
        left, right = node.inputs
        factor = left if right is ref.value and node.op == "Mul" else right
        if factor is None or only_reader(output) is None:
            return None
        shapes = self.views.shapes
        constant = self.views.beside(ref.index, factor)
        step = None if constant is None else scale_by(node.op, constant, shapes)
        if step is not None:
            self.found[node] = step
            return Ref(output, ref.index)
        # By 0, of which a computed one isn't sure, a row of numbers and their sum become different.
        is_product = node.op == "Mul" and not shapes.is_constant(factor)
        placed = self._of_rows(factor, ref) if is_product else None
        if placed is None or shapes.shape(output) != shapes.shape(ref.value):
            return None
        self.found[node] = placed
        return Ref(output, ref.index)

    def _of_rows(self, factor: Value, ref: Ref) -> Placed | None:
        """Return what the weights are multiplied by, before it was repeated along the columns."""
        beside = self.views.beside(ref.index, factor)
        if beside is None:
            return None
        space, placed = self.views.space, Placed.of(beside)
        is_exact = placed.is_exact(self.views)
        found = [*map(Placed.of, self.views.chain(beside))] if is_exact else [placed]
        columns = space.atoms_of(self.column)
        return next((at for at in found if not space.atoms_of(*at.index) & columns), None)

    def applied(self, values: Values) -> Values:
        """Return the product with what scales the weights, which scales the values instead.

        What has numbers for rows scales the product. Raises: Declined for numbers that differ among
        columns.
        """
        space, own = self.views.space, list[Step]()
        columns = space.atoms_of(self.column)
        heads = space.atoms_of(*values.value.index) - columns
        factors: list[tuple[str, Placed]] = []
        for node, step in self.found.items():
            if isinstance(step, Placed):
                factors.append(("Mul", step))
            elif (varies := step_atoms((step.resolve(space),))) <= heads:
                own.append(step)
            elif varies & columns:
                raise Declined(Code.WEIGHTS_SCALED, node)
            else:
                factors.append((step.op, Placed.of(step.constant)))
        return replace(values, steps=tuple(own), factors=tuple(factors))
