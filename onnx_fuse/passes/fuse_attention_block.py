"""The pass: each attention block that is small enough becomes one node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from onnx_fuse.config import UNSET, Bindings, Options, Unset
from onnx_fuse.ir.inline import written_out
from onnx_fuse.ir.model import Model
from onnx_fuse.ir.pairs import in_pairs
from onnx_fuse.op.schema import Precision
from onnx_fuse.passes.carry_out import carry_out
from onnx_fuse.passes.plan import Plan


@dataclass(frozen=True)
class FuseAttentionBlock:
    """Replace attention blocks by `onnx_fuse::FusedAttentionBlock` nodes.

    The fields are the options of `onnx_fuse.fuse`: a block of more than `threshold` rows (batch *
    sequence) is left as it is; None fuses all, 0 none; without it, RLX_FUSE_ATTN_THRESHOLD or 64
    holds, as it is when the pass is made. `options` are those that hold.

    Raises: InvalidOption for a value that makes no sense.
    """

    threshold: int | str | Unset | None = UNSET
    batch: int | None = None
    seq: int | None = None
    dims: Bindings | None = None
    fallback: bool = True
    precision: Precision = "fp32"
    options: Options = field(init=False, repr=False, compare=False)
    name: ClassVar[str] = "fuse_attention_block"

    def __post_init__(self) -> None:
        """Take what isn't given from the environment and the defaults, and check all."""
        options = Options.resolve(
            threshold=self.threshold,
            batch=self.batch,
            seq=self.seq,
            dims=self.dims,
            fallback=self.fallback,
            precision=self.precision,
        )
        object.__setattr__(self, "options", options)

    def run(self, model: Model) -> Model:
        """Return the model with its blocks rewritten, in place unless some of it is written out."""
        return carry_out(self.plan(model))

    def plan(self, model: Model) -> Plan:
        """Return what becomes of the model's attention sites, and change nothing.

        The plan is for the model with its functions written out if a greater share is fused so:
        blocks may reach across functions, where each module is one. Products of several tensors
        are written out before if more blocks are fused so: one may be two of a block's products.
        """
        plan, paired = Plan(model, self.options), in_pairs(model)
        other = plan if paired is None else Plan(paired, self.options)
        plan = other if len(other.jobs) > len(plan.jobs) else plan
        flat = written_out(plan.model)
        other = plan if flat is None else Plan(flat, self.options)
        return other if other.share_fused > plan.share_fused else plan
