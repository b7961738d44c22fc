"""Puts a node in the place of each block that a plan fuses."""

from __future__ import annotations

from collections import Counter

from onnx import TensorProto

from onnx_fuse.analysis.algebra.arrange import in_layout, layout_cost
from onnx_fuse.analysis.algebra.expr import Call, leaves
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.record.records import AttentionBlock, Result
from onnx_fuse.ir.build import new_function
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.ir.model import Model
from onnx_fuse.op import function, schema
from onnx_fuse.op.form import Form
from onnx_fuse.passes.emit import Emitter
from onnx_fuse.passes.free_reserved_names import free_reserved_names
from onnx_fuse.passes.plan import Job, Plan
from onnx_fuse.passes.release import answer_after, interior, release


def carry_out(plan: Plan) -> Model:
    """Rewrite the plan's model in place, which it can do once, and return it."""
    writing = _Writing(plan)
    for job in plan.jobs:
        writing.fuse(job)
    free_reserved_names(plan.model)
    return plan.model


class _Writing:
    """What is known while the blocks of a plan are written one after the other."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.model, self.shapes, self.opset = plan.model, plan.shapes, plan.opset
        self._weights: dict[object, Value] = {}
        # What blocks to come will read: it may be inside of an earlier one, of which only views are
        # read in the model.
        self._awaited: Counter[Value] = Counter()
        for job in plan.jobs:
            self._awaited.update(_read(job))

    def fuse(self, job: Job) -> None:
        """Put a node in the place of one block."""
        assert job.form is not None
        block, graph = job.block, job.graph
        emitter = self.plan.emitter(graph)
        inside = interior(block)
        made = block.results
        shown = [result.ref for result in made[1:] if result.ref is not None]
        for ref in shown:
            answer_after(block, ref.value, emitter)
        inputs = [self._input(job, name, emitter) for name in job.form.operands]
        inputs += self._extras(job.form, block)
        self._awaited -= Counter(_read(job))
        replaced = list(dict.fromkeys(ref.value.producer for ref in (block.output, *shown)))
        names = [row.name for row in schema.outputs(len(made))]
        node = graph.add_node(
            job.form.op_type,
            inputs,
            [
                self._in_place(block, result) or f"{job.name}_{name}"
                for result, name in zip(made, names, strict=True)
            ],
            attributes=job.attributes.to_onnx(job.form.operands, job.form.extras),
            domain=schema.DOMAIN,
            name=job.name,
            before=emitter.after(inputs),
        )
        self._take_over(job, list(zip(made, node.outputs, strict=True)), emitter)
        for ref in (block.output, *shown):
            assert ref.value.producer is not None
            _put_readers_after(ref.value.producer)
        graph.add_opset(schema.DOMAIN, schema.VERSION)
        if self.plan.options.fallback and not any(
            f.name == job.form.op_type and f.domain == schema.DOMAIN for f in self.model.functions
        ):
            body = function.body(job.form, self.opset)
            self.model.add_function(new_function(self.model, body))
        graph.remove_dead([old for old in replaced if old is not None], self._awaited)
        release(block, inside, emitter, self._awaited)

    def _input(self, job: Job, name: str, emitter: Emitter) -> Value:
        operand = job.operands[name]
        hint = f"{job.name}/{name}"
        if not isinstance(operand, Constant):
            return emitter.value(operand, hint)
        weight = self.plan.weight(operand)
        # Branches share a weight that stands around them; a function's graph has no initializers.
        home = job.graph if job.graph.function else weight.graph
        known = (weight.key(), home)
        if known not in self._weights:
            self._weights[known] = home.add_constant(hint, operand)
        return self._weights[known]

    def _extras(self, form: Form, block: AttentionBlock) -> list[Value]:
        """Return what only the operator that the body keeps reads."""
        if form.core is None:
            return []
        given = zip(form.core.inputs, block.core_inputs, strict=True)
        return [value for name, value in given if value is not None and name in form.extras]

    def _in_place(self, block: AttentionBlock, result: Result) -> Value | None:
        """Return the value that one of the operator's outputs replaces as it is."""
        ref = result.ref
        is_changed = ref is block.output and block.output_factors
        if ref is None or result.stack_axis is not None or is_changed:
            return None
        same = layout_cost(result.axes, ref, block.extents) == 0
        is_float = self.shapes.dtype(ref.value) in (None, TensorProto.FLOAT)
        return ref.value if same and is_float else None

    def _take_over(
        self, job: Job, made: list[tuple[Result, Value | None]], emitter: Emitter
    ) -> None:
        """Bring outputs of the new node into the old layouts and types; let them be the old values.

        Two parts of one tensor are stacked again.
        """
        parts_of: dict[Value, list[tuple[int, Call]]] = {}
        axes: dict[Value, int] = {}
        for result, output in made:
            ref = result.ref
            if ref is None or output is None or output is ref.value:
                continue
            part = Ref(ref.value, result.part_index)
            placed = in_layout(output, result.axes, part, job.block.extents)
            assert placed is not None
            for op, factor in job.block.output_factors if ref is job.block.output else ():
                placed = Call(op, (placed, emitter.as_float(factor)))
            dtype = self.shapes.dtype(ref.value)
            if dtype not in (None, TensorProto.FLOAT):
                placed = Call("Cast", (placed,), (("to", int(dtype or 0)),))
            assert isinstance(placed, Call)
            parts_of.setdefault(ref.value, []).append((result.part, placed))
            axes[ref.value] = result.stack_axis or 0
        for value, parts in parts_of.items():
            ordered = [part for _, part in sorted(parts, key=lambda pair: pair[0])]
            whole = ordered[0]
            if len(ordered) > 1:
                whole = Call("Concat", tuple(ordered), (("axis", axes[value]),))
            inputs = [emitter.value(part, f"{job.name}_output") for part in whole.inputs]
            emitter.node(whole, inputs, f"{job.name}_{whole.op_type}", value)


def _read(job: Job) -> list[Value]:
    """Return the values of the model that are needed for a block."""
    return [value for each in job.made_of for value in leaves(each)]


def _put_readers_after(node: Node) -> None:
    """Move what reads the node's outputs, and stood before it, right behind it."""
    early: dict[Node, None] = {}
    waiting = [node]
    while waiting:
        for value in waiting.pop().outputs:
            for use in value.uses if value is not None else ():
                reader = _in_graph(use.node, node)
                if reader.rank < node.rank and reader not in early:
                    early[reader] = None
                    waiting.append(reader)
    behind = node.next
    for reader in sorted(early, key=lambda other: other.rank):
        assert behind is not None
        node.graph.move(reader, behind)


def _in_graph(reader: Node, node: Node) -> Node:
    """Return the reader, or the node of `node`'s graph in whose sub-graph it stands."""
    while reader.graph is not node.graph:
        assert reader.graph.parent is not None
        reader = reader.graph.parent
    return reader
