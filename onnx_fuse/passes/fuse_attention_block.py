"""The pass: each attention block that is small enough becomes one node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.analysis.attention import recognise
from onnx_fuse.analysis.dims import Dim
from onnx_fuse.analysis.expr import Call, Expr, in_layout
from onnx_fuse.analysis.records import AttentionBlock, Present, Site, Weight
from onnx_fuse.analysis.shapes import Shapes
from onnx_fuse.analysis.views import Ref
from onnx_fuse.config import UNSET, Bindings, Options, Precision, Unset
from onnx_fuse.errors import InvalidOption
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.element_types import NUMPY_TYPES
from onnx_fuse.ir.graph import Graph, Node, Value
from onnx_fuse.ir.model import Model
from onnx_fuse.op import function, layout, schema
from onnx_fuse.op.core import Core
from onnx_fuse.op.form import (
    NEWEST_OPSET,
    OLDEST_BFLOAT16_OPSET,
    OLDEST_OPSET,
    Form,
    form_of,
    neutral,
)
from onnx_fuse.op.schema import Argument, BlockAttributes
from onnx_fuse.passes import site_reports
from onnx_fuse.passes.emit import Emitter
from onnx_fuse.passes.release import answer_shapes_after, interior, release
from onnx_fuse.passes.site_reports import declined
from onnx_fuse.report import BlockReport, Code

# What a block may lack and still share a body with blocks that have it.
_UNIFIED = (
    "qkv_bias",
    "q_bias",
    "k_bias",
    "v_bias",
    "attn_bias",
    "attn_mask",
    "mask_fill",
    "sinks",
    "out_bias",
)


@dataclass(frozen=True)
class FuseAttentionBlock:
    """Replace attention blocks by `onnx_fuse::FusedAttentionBlock` nodes.

    The fields are the options of `onnx_fuse.fuse`: a block of more than `threshold` rows (batch *
    sequence) is left as it is; None fuses all, 0 none; without it, RLX_FUSE_ATTN_THRESHOLD or 64
    holds.

    Raises: InvalidOption for a value that makes no sense.
    """

    threshold: int | str | Unset | None = UNSET
    batch: int | None = None
    seq: int | None = None
    dims: Bindings | None = None
    fallback: bool = True
    precision: Precision = "fp32"
    name: ClassVar[str] = "fuse_attention_block"

    def __post_init__(self) -> None:
        """Check the options."""
        _ = self.options

    @property
    def options(self) -> Options:
        """The options that hold, with the environment's and the default ones."""
        return Options.resolve(
            threshold=self.threshold,
            batch=self.batch,
            seq=self.seq,
            dims=self.dims,
            fallback=self.fallback,
            precision=self.precision,
        )

    def run(self, graph: Model) -> Model:
        """Rewrite the model's blocks in place and return it."""
        self.apply(graph)
        return graph

    def apply(self, model: Model) -> list[BlockReport]:
        """Rewrite the model's blocks in place and say of every attention site what happened."""
        return _Rewrite(model, self.options).run()

    def find(self, model: Model) -> list[BlockReport]:
        """Say of every attention site what would become of it, and change nothing."""
        return _Rewrite(model, self.options).reports()


@dataclass
class _Job:
    """One block on its way into the graph."""

    site: Site
    block: AttentionBlock
    name: str
    graph: Graph
    operands: dict[str, Value | Constant | Expr]
    attributes: BlockAttributes
    form: Form | None = None


class _Rewrite:
    """Rewrites one model once."""

    def __init__(self, model: Model, options: Options) -> None:
        self.model = model
        self.options = options
        self.shapes = Shapes(model)
        self.bindings = _bindings(model, options)
        self.opset = model.opsets.get("", 1)
        self._weights: dict[object, Value] = {}
        self._weight_keys: dict[Constant, object] = {}
        self._emitters: dict[Graph, Emitter] = {}
        self._names = {node.name for graph in model.graphs() for node in graph.nodes}

    def run(self) -> list[BlockReport]:
        """Fuse, and return the report of each site in order."""
        entries, jobs, refused = self._planned()
        for job in jobs:
            if job not in refused:
                self._fuse(job)
        return self._reported(entries, refused)

    def reports(self) -> list[BlockReport]:
        """Return the report of each site in order."""
        entries, _, refused = self._planned()
        return self._reported(entries, refused)

    def _planned(self) -> tuple[list[_Job | BlockReport], list[_Job], list[_Job]]:
        """Return all sites, the blocks among them, and those blocks for which there is no form."""
        entries = self._entries()
        jobs = [entry for entry in entries if isinstance(entry, _Job)]
        return entries, jobs, self._choose_forms(jobs)

    def _reported(
        self, entries: list[_Job | BlockReport], refused: list[_Job]
    ) -> list[BlockReport]:
        return [
            self._report(entry, entry in refused) if isinstance(entry, _Job) else entry
            for entry in entries
        ]

    # Sites ----------------------------------------------------------------------------------------

    def _entries(self) -> list[_Job | BlockReport]:
        entries: list[_Job | BlockReport] = []
        for graph in self.model.graphs():
            if graph.function is not None and graph.function.domain == schema.DOMAIN:
                continue
            for node in graph.nodes:
                if node.domain == schema.DOMAIN:
                    entries.append(site_reports.already_fused(node))
            for site in recognise(graph, self.shapes):
                entries.append(self._entry(site, graph, len(entries)))
        return entries

    def _entry(self, site: Site, graph: Graph, number: int) -> _Job | BlockReport:
        name = self._site_name(site.node, number)
        if site.block is None:
            return site_reports.not_recognised(name, site)
        batch, seq, rows = (
            _evaluate(extent, self.bindings)
            for extent in (site.block.batch, site.block.q_seq, site.block.rows)
        )
        limit = self.options.threshold
        is_narrow = self.options.precision == "bf16"
        oldest = OLDEST_BFLOAT16_OPSET if is_narrow else OLDEST_OPSET
        if self.opset < oldest:
            return declined(name, site, Code.OLD_OPSET, opset=self.opset, oldest=oldest)
        if self.opset > NEWEST_OPSET:
            newest = NEWEST_OPSET
            return declined(name, site, Code.NEW_OPSET, opset=self.opset, newest=newest)
        if limit == 0:
            return declined(name, site, Code.DISABLED)
        if limit is not None and rows is not None and rows > limit:
            return declined(
                name, site, Code.TOO_LARGE, batch=batch, seq=seq, rows=rows, threshold=limit
            )
        return _Job(
            site,
            site.block,
            name,
            graph,
            self._operands(site.block, graph),
            _attributes(site.block, self.options),
        )

    def _site_name(self, node: Node, number: int) -> str:
        """Return a name of its own: the module path of the softmax where names are paths."""
        is_path = "/" in node.name.strip("/")
        stem = node.name.rsplit("/", 1)[0] if is_path else f"attention_{number}"
        name, copies = stem, 1
        while name in self._names:
            copies += 1
            name = f"{stem}_{copies}"
        self._names.add(name)
        return name

    def _report(self, job: _Job, refused: bool) -> BlockReport:
        if refused:
            return declined(job.name, job.site, Code.TOO_MANY_FORMS, limit=schema.BODIES)
        return site_reports.fused(job.name, job.site)

    # Operands -------------------------------------------------------------------------------------

    def _emitter(self, graph: Graph) -> Emitter:
        if graph not in self._emitters:
            self._emitters[graph] = Emitter(graph, self.shapes)
        return self._emitters[graph]

    def _operands(self, block: AttentionBlock, graph: Graph) -> dict[str, Value | Constant | Expr]:
        """Return each operand as an expression or a lazily gathered constant."""
        emitter = self._emitter(graph)
        found: dict[str, Value | Constant | Expr] = {
            name: emitter.as_float(expr) for name, expr in (block.sources | block.tables).items()
        }
        found |= block.lengths
        for name, weight in block.weights.items():
            found[f"{name}_weight"] = self._weight(weight)
            bias = weight.bias(self.shapes)
            if bias is not None:
                found[f"{name}_bias"] = bias
        for name, norm in block.norms.items():
            found[f"{name}_norm_weight"] = norm.weight
            if norm.bias is not None:
                found[f"{name}_norm_bias"] = norm.bias
        masking = block.masking
        if masking.bias is not None:
            found["attn_bias"] = emitter.as_float(masking.bias)
        if masking.keep is not None and masking.fill is not None:
            found["attn_mask"] = masking.keep
            found["mask_fill"] = emitter.as_float(masking.fill)
        if block.sinks is not None:
            found["sinks"] = emitter.as_float(block.sinks)
        if block.out_weight is not None:
            found["out_weight"] = self._weight(block.out_weight)
            bias = block.out_weight.bias(self.shapes)
            if bias is not None:
                found["out_bias"] = bias
        return found

    def _weight(self, weight: Weight) -> Constant:
        bf16 = self.options.precision == "bf16"
        dtype = TensorProto.BFLOAT16 if bf16 else TensorProto.FLOAT

        def make() -> np.ndarray:
            panels = layout.pack(weight.matrix(self.shapes))
            # onnx up to 1.18 has no numpy type for bfloat16.
            return panels.astype(NUMPY_TYPES[dtype], copy=False)

        shape = (layout.panel_count(weight.columns), weight.rows, layout.PANEL)
        constant = Constant.computed(dtype, shape, make)
        self._weight_keys[constant] = weight.key()
        return constant

    # Forms ----------------------------------------------------------------------------------------

    def _choose_forms(self, jobs: list[_Job]) -> list[_Job]:
        """Give each block its form; return those for which there is no name left."""
        groups: dict[object, list[_Job]] = {}
        for job in jobs:
            groups.setdefault(self._skeleton(job), []).append(job)
        names: dict[str, list[object]] = {}
        refused: list[_Job] = []
        for skeleton, members in groups.items():
            union = [name for name in _UNIFIED if any(name in job.operands for job in members)]
            for job in members:
                for name in union:
                    if name not in job.operands:
                        job.operands[name] = neutral(name, job.attributes)
            base = members[0].form.op_type if members[0].form else ""
            taken = names.setdefault(base, [])
            taken.append(skeleton)
            if len(taken) > schema.BODIES:
                refused += members
                continue
            op_type = base if len(taken) == 1 else f"{base}_{len(taken)}"
            for job in members:
                job.form = self._form(job, op_type)
        return refused

    def _form(self, job: _Job, op_type: str) -> Form:
        arguments = {name: self._argument(operand) for name, operand in job.operands.items()}
        return form_of(
            op_type,
            arguments,
            job.attributes,
            1 + len(job.block.presents),
            self.opset,
            self._core(job),
        )

    def _core(self, job: _Job) -> Core | None:
        """Return the operator that the body keeps; what it shares with the block, under its name.

        A session without the library then runs what the original ran.
        """
        if job.block.core is None or not self.options.fallback:
            return None
        shared = {id(operand): name for name, operand in job.operands.items()}
        names = zip(job.block.core.inputs, job.block.core_inputs, strict=True)
        inputs = tuple(name and shared.get(id(value), name) for name, value in names)
        return replace(job.block.core, inputs=inputs)

    def _argument(self, operand: Value | Constant | Expr) -> Argument:
        match operand:
            case Constant():
                return Argument(operand.dtype, operand.shape)
            case np.ndarray():
                return Argument(int(helper.np_dtype_to_tensor_dtype(operand.dtype)), operand.shape)
            case _:
                return Argument(None, None)

    def _skeleton(self, job: _Job) -> object:
        """Return what must be equal for two blocks to share one body."""
        crossed = (
            any(name in job.operands for name in ("context", "value_context"))
            or job.block.kind == "cross"
        )
        job.form = self._form(job, schema.OP_TYPES[1] if crossed else schema.OP_TYPES[0])
        fixed_names = tuple(name for name in job.form.operands if name not in _UNIFIED)
        return replace(job.form, operands=fixed_names)

    # Rewriting ------------------------------------------------------------------------------------

    def _fuse(self, job: _Job) -> None:
        assert job.form is not None
        block, graph = job.block, job.graph
        emitter = self._emitter(graph)
        inside = interior(block)
        shown = [present.ref for present in block.presents if present.ref is not None]
        for ref in shown:
            answer_shapes_after(block, ref.value, emitter)
        inputs = [self._input(job, name, emitter) for name in job.form.operands]
        inputs += self._extras(job.form, block)
        made = [Present(block.output, block.output_axes), *block.presents]
        replaced = list(dict.fromkeys(ref.value.producer for ref in (block.output, *shown)))
        names = ("output", "present_key", "present_value")
        node = graph.add_node(
            job.form.op_type,
            inputs,
            [
                self._in_place(block, present) or f"{job.name}_{name}"
                for present, name in zip(made, names, strict=False)
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
        if self.options.fallback and not any(
            f.name == job.form.op_type and f.domain == schema.DOMAIN for f in self.model.functions
        ):
            self.model.add_function(function.body(job.form, self.opset))
        graph.remove_dead([old for old in replaced if old is not None])
        release(block, inside, emitter)

    def _input(self, job: _Job, name: str, emitter: Emitter) -> Value:
        operand = job.operands[name]
        hint = f"{job.name}/{name}"
        if not isinstance(operand, Constant):
            return emitter.value(operand, hint)
        known = (self._weight_keys[operand], job.graph if job.graph.function else None)
        if known not in self._weights:
            self._weights[known] = emitter.constant(operand, hint)
        return self._weights[known]

    def _extras(self, form: Form, block: AttentionBlock) -> list[Value]:
        """Return what only the operator that the body keeps reads."""
        if form.core is None:
            return []
        given = zip(form.core.inputs, block.core_inputs, strict=True)
        return [value for name, value in given if value is not None and name in form.extras]

    def _in_place(self, block: AttentionBlock, present: Present) -> Value | None:
        """Return the value that one of the operator's outputs replaces as it is."""
        ref = present.ref
        if ref is None or present.stack_axis is not None:
            return None
        probe = np.zeros(())
        same = in_layout(probe, present.axes, ref, block.extents) is probe
        is_float = self.shapes.dtype(ref.value) in (None, TensorProto.FLOAT)
        return ref.value if same and is_float else None

    def _take_over(
        self, job: _Job, made: list[tuple[Present, Value | None]], emitter: Emitter
    ) -> None:
        """Bring outputs of the new node into the old layouts and types; let them be the old values.

        Two parts of one tensor are stacked again.
        """
        results: dict[Value, list[tuple[int, Call]]] = {}
        axes: dict[Value, int] = {}
        for present, output in made:
            ref = present.ref
            if ref is None or output is None or output is ref.value:
                continue
            part = Ref(ref.value, present.part_index)
            result = in_layout(output, present.axes, part, job.block.extents)
            assert result is not None
            dtype = self.shapes.dtype(ref.value)
            if dtype not in (None, TensorProto.FLOAT):
                result = Call("Cast", (result,), (("to", int(dtype or 0)),))
            assert isinstance(result, Call)
            results.setdefault(ref.value, []).append((present.part, result))
            axes[ref.value] = present.stack_axis or 0
        for value, parts in results.items():
            ordered = [part for _, part in sorted(parts, key=lambda pair: pair[0])]
            whole = ordered[0]
            if len(ordered) > 1:
                whole = Call("Concat", tuple(ordered), (("axis", axes[value]),))
            inputs = [emitter.value(part, f"{job.name}_output") for part in whole.inputs]
            emitter.node(whole, inputs, f"{job.name}_{whole.op_type}", value)


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


def _bindings(model: Model, options: Options) -> dict[str, int]:
    """Return the extent of each symbol that the options bind, by the symbol's text.

    The first axes of the inputs are batches, their second ones sequences.

    Raises: InvalidOption if a name of `dims` stands at no input.
    """
    shapes = [value.shape or () for value in model.graph.inputs]
    known = dict.fromkeys(name for shape in shapes for name in shape if isinstance(name, str))
    found: dict[str, int] = {}
    for axis, extent in enumerate((options.batch, options.seq)):
        for shape in shapes:
            symbol = shape[axis] if len(shape) > axis else None
            if extent is not None and isinstance(symbol, str):
                found.setdefault(symbol, extent)
    for name, extent in options.dims:
        if name not in known:
            raise InvalidOption(
                f"dim {name}={extent}: no input has a dimension of this name; "
                + (f"known: {', '.join(known)}" if known else "all of them are fixed")
            )
        found[name] = extent
    return {str(Dim.symbol(name)): extent for name, extent in found.items()}


def _evaluate(extent: Dim, bindings: Mapping[str, int]) -> int | None:
    """Return the number that an extent is for these symbols, None if they don't tell."""
    try:
        return extent.evaluate(bindings)
    except ZeroDivisionError:
        return None


def _attributes(block: AttentionBlock, options: Options) -> BlockAttributes:
    norms = block.norms
    return BlockAttributes(
        num_heads=block.num_heads,
        kv_num_heads=block.kv_num_heads,
        head_dim=block.head_dim,
        v_head_dim=block.v_head_dim,
        out_size=block.out_size,
        scale=block.scale,
        softcap=block.softcap,
        interleaved=int(block.interleaved),
        rotary_embedding_dim=block.rotary_dim,
        q_norm=norms["q"].kind if "q" in norms else "none",
        k_norm=norms["k"].kind if "k" in norms else "none",
        q_norm_over_heads=int("q" in norms and norms["q"].over_heads),
        k_norm_over_heads=int("k" in norms and norms["k"].over_heads),
        q_norm_epsilon=norms["q"].epsilon if "q" in norms else 0.0,
        k_norm_epsilon=norms["k"].epsilon if "k" in norms else 0.0,
        is_causal=int(block.is_causal),
        zero_nan=int(block.zero_nan),
        precision=options.precision,
    )
