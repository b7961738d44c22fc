"""Judges the blocks of a model: which are fused, with which operands, as which operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.analysis.algebra.expr import Expr, values_read
from onnx_fuse.analysis.attention import recognise
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.other_softmaxes import other_softmaxes
from onnx_fuse.analysis.record.records import AttentionBlock, Site, Weight
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.config import Options
from onnx_fuse.errors import InvalidOption
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.element_types import NUMPY_TYPES
from onnx_fuse.ir.graph import Graph, Node, Value
from onnx_fuse.ir.model import Model
from onnx_fuse.op import layout, schema
from onnx_fuse.op.block_attributes import NO_NORM, BlockAttributes
from onnx_fuse.op.core import Core
from onnx_fuse.op.form import (
    NEWEST_OPSET,
    OLDEST_BFLOAT16_OPSET,
    OLDEST_OPSET,
    Form,
    form_of,
    neutral,
)
from onnx_fuse.op.schema import Argument
from onnx_fuse.passes import site_reports
from onnx_fuse.passes.computed_anyway import repeated, scores_read
from onnx_fuse.passes.emit import Emitter
from onnx_fuse.passes.site_reports import declined
from onnx_fuse.report import BlockReport, Code, OtherSoftmax, Outside

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


@dataclass(eq=False)
class Job:
    """One block on its way into the graph."""

    site: Site
    block: AttentionBlock
    name: str
    graph: Graph
    operands: dict[str, Value | Constant | Expr]
    attributes: BlockAttributes
    form: Form | None = None
    # Why projections stay where they are, of queries, keys or values: "q", "k", "v".
    outside: dict[str, Outside] = field(default_factory=dict)

    @property
    def made_of(self) -> list[Value | Expr]:
        """What is computed for the block: its operands that are not packed, and output factors."""
        operands = [each for each in self.operands.values() if not isinstance(each, Constant)]
        return operands + [factor for _, factor in self.block.output_factors]


class Plan:
    """What becomes of each attention site of one model. Nothing is changed by it.

    `jobs` are the blocks to fuse, each with its form; `notes` say what was asked for in vain.
    """

    def __init__(self, model: Model, options: Options) -> None:
        self.model = model
        self.options = options
        self.shapes = Shapes(model)
        self.opset = model.opset
        self._bindings = _bindings(model, options, self.shapes)
        self.notes = _without_effect(model, options)
        self._weights: dict[Constant, Weight] = {}
        self._emitters: dict[Graph, Emitter] = {}
        self._names = {node.name for graph in model.graphs() for node in graph.nodes}
        self.others: list[OtherSoftmax] = []  # those that are no attention
        self._entries = self._found()
        self._decline_shared_scores()
        blocks = self._blocks()
        self._leave_outside(blocks)
        self._refused = self._choose_forms(blocks)
        self.jobs = [job for job in blocks if job not in self._refused]

    def reports(self) -> list[BlockReport]:
        """Return the report of each site in order."""
        return [self._report(entry) if isinstance(entry, Job) else entry for entry in self._entries]

    @property
    def share_fused(self) -> float:
        """Which share of the attention sites is fused; 0 where there are none."""
        return len(self.jobs) / max(1, len(self._entries))

    def emitter(self, graph: Graph) -> Emitter:
        """Return what adds the nodes of one graph."""
        if graph not in self._emitters:
            self._emitters[graph] = Emitter(graph, self.shapes)
        return self._emitters[graph]

    def weight(self, packed: Constant) -> Weight:
        """Return the weight that an operand holds, packed."""
        return self._weights[packed]

    # Sites ----------------------------------------------------------------------------------------

    def _found(self) -> list[Job | BlockReport]:
        entries: list[Job | BlockReport] = []
        for graph in self.model.graphs():
            if graph.function is not None and graph.function.domain == schema.DOMAIN:
                continue
            own = (node for node in graph.nodes if node.domain == schema.DOMAIN)
            entries += map(site_reports.already_fused, own)
            sites = [*recognise(graph, self.shapes)]
            for site in sites:
                entries.append(self._entry(site, graph, len(entries)))
            self.others += other_softmaxes(graph, sites)
        return entries

    def _entry(self, site: Site, graph: Graph, number: int) -> Job | BlockReport:
        name = self._site_name(site.node, number)
        if site.block is None:
            return site_reports.not_recognised(name, site)
        batch, seq, rows = (
            _evaluate(extent, self._bindings)
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
        return Job(
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

    def _report(self, job: Job) -> BlockReport:
        if job in self._refused:
            return declined(job.name, job.site, Code.TOO_MANY_FORMS, limit=schema.BODIES)
        return site_reports.fused(job.name, job.site, job.outside)

    def _blocks(self) -> list[Job]:
        return [entry for entry in self._entries if isinstance(entry, Job)]

    def _decline_shared_scores(self) -> None:
        """Decline blocks whose scores the model needs besides, also for other such blocks."""
        while True:
            jobs = self._blocks()
            found = scores_read([job.site for job in jobs], _read(jobs))
            others = dict(zip(jobs, found, strict=True))
            if not any(others.values()):
                return
            for place, entry in enumerate(self._entries):
                other = others.get(entry) if isinstance(entry, Job) else None
                if isinstance(entry, Job) and other is not None:
                    facts = {"value": other[0].name, "what": other[1]}
                    self._entries[place] = declined(
                        entry.name, entry.site, Code.SCORES_READ, **facts
                    )

    def _leave_outside(self, jobs: Sequence[Job]) -> None:
        """Let projections enter as values that are computed anyway, also for other such blocks."""
        while True:
            found = repeated([job.block for job in jobs], _read(jobs))
            left = [
                self._without(job, name, why)
                for job, named in zip(jobs, found, strict=True)
                for name, why in named.items()
                if name not in job.outside
            ]
            if not any(left):
                return

    def _without(self, job: Job, name: str, why: Outside) -> bool:
        """Leave one more projection of a block outside; say whether it is a block without it."""
        block = job.site.without({*job.outside, name})
        if block is None:
            return False
        job.outside[name] = why
        job.site, job.block = replace(job.site, block=block), block
        job.operands = self._operands(block, job.graph)
        job.attributes = _attributes(block, self.options)
        return True

    # Operands -------------------------------------------------------------------------------------

    def _operands(self, block: AttentionBlock, graph: Graph) -> dict[str, Value | Constant | Expr]:
        """Return each operand as an expression or a lazily gathered constant."""
        emitter = self.emitter(graph)
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
        if block.gate is not None:
            found["gate"] = emitter.as_float(block.gate)
        if block.out_weight is not None:
            found["out_weight"] = self._weight(block.out_weight)
            bias = block.out_weight.bias(self.shapes)
            if bias is not None:
                found["out_bias"] = bias
        return found

    def _weight(self, weight: Weight) -> Constant:
        count, rows = layout.panel_count(weight.columns), weight.rows
        # An odd number of rows has no pairs: it stays float32.
        paired = self.options.precision == "bf16" and rows % 2 == 0
        dtype = TensorProto.BFLOAT16 if paired else TensorProto.FLOAT

        def make() -> np.ndarray:
            panels = layout.pack(weight.matrix(self.shapes))
            # onnx up to 1.18 has no numpy type for bfloat16.
            panels = panels.astype(NUMPY_TYPES[dtype], copy=False)
            return layout.pair(panels) if paired else panels

        plain = (count, rows, layout.PANEL)
        shape = (count, rows // 2, layout.PANEL, 2) if paired else plain
        constant = Constant.computed(dtype, shape, make)
        self._weights[constant] = weight
        return constant

    # Forms ----------------------------------------------------------------------------------------

    def _choose_forms(self, jobs: list[Job]) -> list[Job]:
        """Give each block its form; return those for which there is no name left."""
        groups: dict[Form, list[Job]] = {}
        for job in jobs:
            groups.setdefault(self._skeleton(job), []).append(job)
        bodies: Counter[str] = Counter()
        refused: list[Job] = []
        for skeleton, members in groups.items():
            unified = _unified(members[0])
            union = [name for name in unified if any(name in job.operands for job in members)]
            for job in members:
                for name in union:
                    if name not in job.operands:
                        job.operands[name] = neutral(name, job.attributes)
            number = bodies[skeleton.op_type]
            bodies[skeleton.op_type] += 1
            if number >= schema.BODIES:
                refused += members
                continue
            for job in members:
                job.form = self._form(job, schema.op_type(skeleton.op_type, number))
        return refused

    def _form(self, job: Job, op_type: str) -> Form:
        arguments = {name: self._argument(operand) for name, operand in job.operands.items()}
        return form_of(
            op_type,
            arguments,
            job.attributes,
            len(job.block.results),
            self.opset,
            self._core(job),
        )

    def _core(self, job: Job) -> Core | None:
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

    def _skeleton(self, job: Job) -> Form:
        """Return what must be equal for two blocks to share one body."""
        is_cross = job.block.kind == "cross" or not job.operands.keys().isdisjoint(
            ("context", "value_context")
        )
        self_type, cross_type = schema.OP_TYPES
        form = self._form(job, cross_type if is_cross else self_type)
        unified = _unified(job)
        return replace(form, operands=tuple(n for n in form.operands if n not in unified))


def _read(jobs: Sequence[Job]) -> set[Value]:
    """Return the values whose elements blocks read."""
    return {value for job in jobs for each in job.made_of for value in values_read(each)}


def _unified(job: Job) -> tuple[str, ...]:
    """Return what the block may lack and still share a body with blocks that have it."""
    if "seqlens_k" in job.operands:  # the body's operator takes no bias that broadcasts
        return tuple(name for name in _UNIFIED if name != "attn_bias")
    return _UNIFIED


def _bindings(model: Model, options: Options, shapes: Shapes) -> dict[str, int]:
    """Return the extent of each symbol that the options bind, by the symbol's text.

    What stands at an input's axis that the options speak of is bound, whether it has a name or not,
    and what a name is known to equal is bound with it.

    Raises: InvalidOption if a name of `dims` stands at no input.
    """
    declared = [value.shape or () for value in model.graph.inputs]
    known = dict.fromkeys(name for shape in declared for name in shape if isinstance(name, str))
    found: dict[str, int] = {}
    for _, axis, extent in _by_axis(options):
        for shape in declared:
            symbol = shape[axis] if len(shape) > axis else None
            if isinstance(symbol, str):
                found.setdefault(symbol, extent)
    for name, extent in options.dims:
        if name not in known:
            raise InvalidOption(
                f"dim {name}={extent}: no input has a dimension of this name; "
                + (f"known: {', '.join(known)}" if known else "all of them are fixed")
            )
        found[name] = extent
    bound = {str(Dim.symbol(name)): extent for name, extent in found.items()}
    own = {axis: extent for _, axis, extent in _by_axis(options)}
    for value in model.graph.inputs:
        dims = zip(value.shape or (), shapes.shape(value) or (), strict=True)
        for axis, (symbol, dim) in enumerate(dims):
            size = found.get(symbol) if isinstance(symbol, str) else own.get(axis)
            if size is not None and dim.as_int() is None:
                bound.setdefault(str(dim), size)
    return bound


def _by_axis(options: Options) -> list[tuple[str, int, int]]:
    """Return what is said of the inputs' axes: (option, axis, extent).

    The first axes of the inputs are batches, their second ones sequences.
    """
    given = enumerate((("batch", options.batch), ("seq", options.seq)))
    return [(name, axis, extent) for axis, (name, extent) in given if extent is not None]


def _without_effect(model: Model, options: Options) -> list[str]:
    """Return a sentence for each option that speaks of an axis that every input has fixed."""
    declared = [value.shape for value in model.graph.inputs]
    return [
        f"{name}={extent} has no effect: dimension {axis} of every input is fixed"
        for name, axis, extent in _by_axis(options)
        if all(
            shape is not None and all(isinstance(size, int) for size in shape[axis : axis + 1])
            for shape in declared
        )
    ]


def _evaluate(extent: Dim, bindings: Mapping[str, int]) -> int | None:
    """Return the number that an extent is for these symbols, None if they don't tell."""
    try:
        return extent.evaluate(bindings)
    except ZeroDivisionError:
        return None


def _attributes(block: AttentionBlock, options: Options) -> BlockAttributes:
    query, key = (block.norms.get(part, NO_NORM) for part in "qk")
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
        q_norm=query.kind,
        k_norm=key.kind,
        q_norm_over_heads=int(query.over_heads),
        k_norm_over_heads=int(key.over_heads),
        q_norm_epsilon=query.epsilon,
        k_norm_epsilon=key.epsilon,
        is_causal=int(block.is_causal),
        window_size=block.window_size,
        window_cache=int(block.has_window_cache),
        zero_nan=int(block.zero_nan),
        precision=options.precision,
    )
