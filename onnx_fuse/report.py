"""What happened to each block, as data and as words.

This is the only place with sentences for users about declined blocks: a new reason to decline is
one member of `Code`. Nothing here reads a graph.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any, Literal

from onnx_fuse.errors import VerificationFailed

SCHEMA_VERSION = 1

Status = Literal["fused", "declined"]
Kind = Literal["self", "cross"]
Rope = Literal["half", "interleaved"]
Part = Literal["q", "k", "v", "out"]

_WORDS: dict[Part, str] = {"q": "the queries", "k": "the keys", "v": "the values"}
_NAME = re.compile(r"'[^']*'")  # of a node or a value, in a sentence


class _Facts(dict[str, object]):
    """Facts of a sentence; one that wasn't given reads as its own name: a report never fails."""

    def __missing__(self, key: str) -> str:
        return key


class Code(str, Enum):
    """Why a block was declined: `(code, sentence, hint)`.

    Codes are stable and part of the JSON report. Sentence and hint are `str.format` templates over
    the facts that the place of decline knows. A fact has one meaning: `node`, `value`, `reader` are
    names, `op` is an operator type, `dtype` a type's name, `what` says an operand, a place or what
    is the case in words ("query"), `part` is a bias, a mask or a fill; the others are numbers or
    shapes.
    """

    _sentence: str
    _hint: str

    def __new__(cls, code: str, sentence: str, hint: str) -> Code:
        """A member whose value, and whose text as a string, is its code."""
        member = str.__new__(cls, code)
        member._value_ = code
        member._sentence = sentence
        member._hint = hint
        return member

    TOO_LARGE = (
        "too_large",
        "batch*q_seq = {batch}*{seq} = {rows} > threshold {threshold}",
        "--threshold {rows} (or none) fuses it",
    )
    DISABLED = (
        "disabled",
        "the threshold is 0, which fuses nothing",
        "--threshold 64, or unset RLX_FUSE_ATTN_THRESHOLD",
    )
    SOFTMAX_AXIS = (
        "softmax_axis",
        "'{node}' normalises over axis {axis}, which the product with the values does not sum",
        "this is not attention over keys; nothing to do",
    )
    NO_SCORES = (
        "no_scores",
        "what '{node}' reads is no product of a query and a key: {what}",
        "nothing to do; if it is such a product in an unusual form, please report the model",
    )
    NO_SOFTMAX = (
        "no_softmax",
        "'{node}' ({op}) makes weights of scores, where attention has a softmax",
        "nothing to do: only the weights of a softmax have a fused form",
    )
    SCORES_CHANGED = (
        "scores_changed",
        "'{node}' ({op}) stands between the scores and the softmax and {what}",
        "export without it, if the model computes the same without; else nothing to do",
    )
    SCORES_READ = (
        "scores_read",
        "the scores '{value}' are also {what}: the block would compute them a second time",
        "export without the scores as an output; where a layer needs them, nothing to do",
    )
    CONTENT_BIAS = (
        "content_bias",
        "the {part} '{value}' is computed from {what}",
        "nothing to do: it belongs to the block and cannot be given to it from outside",
    )
    PAIRWISE = (
        "pairwise",
        "the {what} '{value}' are computed for each pair of query and key",
        "nothing to do: only {what} that all queries share have a fused form",
    )
    MIXED_SCORES = (
        "mixed_scores",
        "'{node}' ({op}) mixes the scores of different heads or positions",
        "nothing to do: such scores have no fused form",
    )
    WEIGHTS_SCALED = (
        "weights_scaled",
        "'{node}' ({op}) changes the weights after the softmax",
        "mask the scores before the softmax; weights may only be renormalised or scaled by row",
    )
    WEIGHTS_COMBINED = (
        "weights_combined",
        "'{node}' ({op}) combines the weights of several softmaxes before any values",
        "multiply the weights of each with the values, and combine what that gives",
    )
    WEIGHTS_READ = (
        "weights_read",
        "the attention weights '{value}' are also {what}, where the operator can't give them",
        "export without the weights as an output (output_attentions, need_weights)",
    )
    SEVERAL_PRODUCTS = (
        "several_products",
        "the attention weights '{value}' meet values in several products, one after '{reader}'",
        "nothing to do: attention in parts, of blocks or chunks, has no fused form",
    )
    CHANNEL_ATTENTION = (
        "channel_attention",
        "'{node}' weighs channels or heads, not positions",
        "nothing to do: attention between channels or heads has no fused form",
    )
    LINEAR_ATTENTION = (
        "linear_attention",
        "'{node}' normalises the {what} before any product of query and key",
        "nothing to do: linear attention has no fused form",
    )
    GATE = (
        "gate",
        "'{node}' is a gate or a mixture: its weights select among choices, not positions",
        "this is not attention; nothing to do",
    )
    CONSTANT = (
        "constant",
        "the scores at '{node}' are computed from constants alone",
        "nothing to do; with static shapes the runtime computes them once, when it loads the model",
    )
    GATHERED = (
        "gathered",
        "'{node}' picks the {what} by ranked indices ('{value}')",
        "nothing to do: attention over what was picked by its content has no fused form",
    )
    PARTIAL = (
        "partial",
        "'{node}' makes one part of an attention that '{reader}' makes another part of",
        "nothing to do: attention over gathered or joined parts has no fused form",
    )
    SHAPE_UNKNOWN = (
        "shape_unknown",
        "an extent of '{value}' cannot be proved: {what}",
        "export with static shapes, or make those of the model's inputs static",
    )
    MASK_SHAPE = (
        "mask_shape",
        "'{value}' of shape {shape} does not broadcast to (batch, heads, rows, columns)",
        "export with static shapes, or make those of the model's inputs static",
    )
    UNSUPPORTED_TYPE = (
        "unsupported_type",
        "'{value}' is {dtype}; float32, float16 and bfloat16 can be fused",
        "convert the model to float32 first",
    )
    CACHE_TYPE = (
        "cache_type",
        "the cache '{value}' is {dtype}: casts of it in every step cost more than fusing saves",
        "export the model, or its cache, in float32",
    )
    UNSUPPORTED_OP = (
        "unsupported_op",
        "'{node}' ({op}) between {what} is not understood",
        "please report the model, it may be a form worth adding",
    )
    UNSUPPORTED_ATTRIBUTE = (
        "unsupported_attribute",
        "of '{node}' ({op}), {attribute} is {setting}, which is not supported",
        "export without this option",
    )
    QUANTIZED = (
        "quantized",
        "'{node}' is a {op}: the attention itself is quantized",
        "fuse before quantizing",
    )
    SCALE_NOT_SCALAR = (
        "scale_not_scalar",
        "the factor '{value}' of the scores {what}",
        "scale queries or keys, not their product; mask by a condition or by what is added",
    )
    MALFORMED = (
        "malformed",
        "around '{node}', an input, attribute or shape of the {what} is not as ONNX has it",
        "run onnx.checker with full_check; if it finds nothing, please report the model",
    )
    OLD_OPSET = (
        "old_opset",
        "the model's opset {opset} is older than {oldest}, the oldest that has a body",
        "convert the model with onnx.version_converter",
    )
    NEW_OPSET = (
        "new_opset",
        "the model's opset {opset} is newer than {newest}, the newest that is known here",
        "upgrade onnx and onnx-fuse, or convert the model with onnx.version_converter",
    )
    TOO_MANY_FORMS = (
        "too_many_forms",
        "the model's blocks need more than {limit} different forms of the operator",
        "please report the model",
    )
    ALREADY_FUSED = (
        "already_fused",
        "the block is already a {op}",
        "nothing to do; unfuse gives back standard ONNX",
    )

    def __str__(self) -> str:
        return str.__str__(self)

    def reason(self, **facts: object) -> str:
        """Return the sentence with these facts. A fact that the sentence doesn't use is ignored."""
        return self._sentence.format_map(_Facts(facts))

    def hint(self, **facts: object) -> str:
        """Return what the user can do about it."""
        return self._hint.format_map(_Facts(facts))


@dataclass(frozen=True)
class Step:
    """A step of the recogniser: its name, and the nodes that it went through, as they came."""

    name: str
    nodes: tuple[str, ...]


def _product(part: Part, value: str) -> str:
    return f"the product '{value}', which holds {_WORDS[part]}"


@dataclass(frozen=True)
class Outside:
    """A projection that isn't part of a fused block, and why."""

    part: Part
    reason: str

    @classmethod
    def made(cls, part: Part, node: str, op: str) -> Outside:
        """What the block reads is no projection."""
        return cls(part, f"'{node}' ({op}) makes {_WORDS[part]}")

    @classmethod
    def replaceable(cls, part: Part, node: str, op: str, weight: str) -> Outside:
        """The projection has a weight that is an input with a default."""
        does = "reads what the attention makes" if part == "out" else f"makes {_WORDS[part]}"
        known = f"'{node}' ({op}) {does} with '{weight}', which callers may replace"
        return cls(part, f"{known}: drop it from the graph's inputs if nobody does")

    @classmethod
    def given(cls, part: Part, value: str, what: str) -> Outside:
        """What the block reads is made by no node: `what` is an input or a constant."""
        return cls(part, f"the {what} '{value}' holds {_WORDS[part]}")

    @classmethod
    def needed(cls, part: Part, value: str, reader: str, op: str) -> Outside:
        """The product is computed anyway: another node reads it."""
        return cls(part, f"{_product(part, value)}, is read by '{reader}' ({op}), too")

    @classmethod
    def kept(cls, part: Part, value: str, name: str) -> Outside:
        """The product is computed anyway: it is needed as another value, an output, say."""
        return cls(part, f"{_product(part, value)}, is needed as '{name}', too")

    @classmethod
    def shared(cls, part: Part, value: str, node: str) -> Outside:
        """The product is computed anyway: the attention at another node has it, too."""
        return cls(part, f"{_product(part, value)}, is read by the attention at '{node}', too")

    @classmethod
    def double(cls, part: Part, value: str, other: Part) -> Outside:
        """The product is computed once for two operands of the block."""
        return cls(part, f"{_product(part, value)}, holds {_WORDS[other]}, too")

    @classmethod
    def by_several(cls, part: Part, value: str) -> Outside:
        """The product has fewer heads than the block: it is computed once for several."""
        return cls(part, f"{_product(part, value)}, has each of its heads for several of the block")

    @classmethod
    def quantized(cls, part: Part, node: str, op: str) -> Outside:
        """The projection multiplies quantized numbers, or what it multiplies is quantized first."""
        does = "reads what the attention makes" if part == "out" else f"makes {_WORDS[part]}"
        return cls(part, f"'{node}' ({op}) {does}, quantized: fuse before quantizing")

    @classmethod
    def joined(cls, join: str, node: str, op: str) -> Outside:
        """The projection is one of what several blocks make."""
        known = f"'{join}' (Concat) joins what the attention makes with other tensors"
        return cls("out", f"{known} before '{node}' ({op}) reads it")

    @classmethod
    def read(cls, node: str, op: str) -> Outside:
        """What follows the attention is no projection."""
        return cls("out", f"'{node}' ({op}) reads what the attention makes")

    @classmethod
    def shown(cls, value: str) -> Outside:
        """Nothing follows the attention."""
        return cls("out", f"what the attention makes is the output '{value}'")


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """One attention site: what it is and what became of it.

    `batch` and `seq` are extents, or names where they are symbolic. `mask` is None or a short list
    of words ("causal", "causal, bias"). `outside` are the projections that a fused block lacks.
    `node` is the node at which the block stands (fused) or where it stopped being understood
    (declined). `steps` are those that the recogniser took, the last one being where it stopped;
    they aren't part of the JSON.
    """

    name: str
    status: Status
    kind: Kind | None = None
    num_heads: int | None = None
    kv_num_heads: int | None = None
    head_dim: int | None = None
    batch: int | str | None = None
    seq: int | str | None = None
    rope: Rope | None = None
    mask: str | None = None
    outside: tuple[Outside, ...] = ()
    code: Code | None = None
    reason: str | None = None
    hint: str | None = None
    node: str | None = None
    steps: tuple[Step, ...] = ()

    @property
    def is_stopped(self) -> bool:
        """Whether the recogniser stopped in the last of the steps."""
        return self.kind is None and bool(self.steps)

    @property
    def understood(self) -> tuple[str, ...]:
        """The names of all nodes that the steps went through."""
        return tuple(node for step in self.steps for node in step.nodes)

    def __post_init__(self) -> None:
        if (self.status == "declined") != (self.code is not None):
            msg = f"block {self.name!r}: a code belongs to a declined block and to no other"
            raise ValueError(msg)

    @classmethod
    def decline(
        cls, name: str, code: Code, facts: Mapping[str, object] | None = None, **known: Any
    ) -> BlockReport:
        """Return a declined block, its sentence made from `facts`; `known` are other fields."""
        facts = facts or {}
        return cls(
            name=name,
            status="declined",
            code=code,
            reason=code.reason(**facts),
            hint=code.hint(**facts),
            **known,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the block as plain JSON values, every field present."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "steps"}
        values["outside"] = [asdict(each) for each in self.outside]
        values["code"] = None if self.code is None else self.code.value
        return values


@dataclass(frozen=True)
class OtherSoftmax:
    """A softmax that is no attention: its node, and what its weights go into instead of values."""

    node: str
    reason: str

    @classmethod
    def ranked(cls, node: str, reader: str, op: str) -> OtherSoftmax:
        """The weights choose, as those of a router among experts do."""
        return cls(node, f"its weights choose among what they are of, by '{reader}' ({op})")

    @classmethod
    def read(cls, node: str, reader: str, op: str) -> OtherSoftmax:
        """The weights are numbers of a formula, as those of a pooling may be."""
        return cls(node, f"its weights go into '{reader}' ({op}), not into a product with values")

    @classmethod
    def shown(cls, node: str, value: str) -> OtherSoftmax:
        """The weights are a result, as those of a classifier are."""
        return cls(node, f"its weights are the output '{value}'")

    @classmethod
    def unread(cls, node: str) -> OtherSoftmax:
        """Nobody reads the weights."""
        return cls(node, "nobody reads its weights")


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Result of running original and fused model on the same inputs.

    `max_abs_err` is the largest absolute difference of any finite element of any output.
    `tolerance` is the bound of that output and case which came closest to its own bound
    (`worst_ratio` = error / bound there; above 1 is a failure). `failures` has one sentence for
    each output that differs. `cases` counts the inputs that ran and were compared, `runs` says in
    which sessions the fused model ran ("kernel", "plain"), `notes` what could not be checked.
    """

    passed: bool
    max_abs_err: float
    tolerance: float
    worst_ratio: float
    cases: int
    runs: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise VerificationFailed, with the first failure's sentence, unless the models agree."""
        if not self.passed:
            more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
            raise VerificationFailed("".join(self.failures[:1]) + more)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; a number that isn't finite is null."""
        return {
            "passed": self.passed,
            "max_abs_err": _finite(self.max_abs_err),
            "tolerance": _finite(self.tolerance),
            "cases": self.cases,
            "runs": list(self.runs),
            "failures": list(self.failures),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `fuse` or `explain` found: every attention site of one model, in graph order.

    `others` are the softmaxes that are none; `notes` say which options have no effect.
    """

    model: str
    output: str | None = None
    blocks: tuple[BlockReport, ...] = ()
    others: tuple[OtherSoftmax, ...] = ()
    verify: VerifyReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_fused(self) -> int:
        """Blocks that are (or would be) one node."""
        return sum(block.status == "fused" for block in self.blocks)

    @property
    def num_declined(self) -> int:
        """Blocks left exactly as they were."""
        return sum(block.status == "declined" for block in self.blocks)

    def tell_others(self) -> list[str]:
        """Return a sentence for each kind of the others, which layers repeat."""
        kinds: dict[str, list[OtherSoftmax]] = {}
        for other in self.others:
            kinds.setdefault(_NAME.sub("", other.reason), []).append(other)
        return [
            f"'{first.node}'" + (f" and {len(more)} more" if more else "") + f": {first.reason}"
            for first, *more in kinds.values()
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON report, as in report.schema.json."""
        return {
            "schema": SCHEMA_VERSION,
            "model": self.model,
            "output": self.output,
            "fused": self.num_fused,
            "declined": self.num_declined,
            "blocks": [block.to_json() for block in self.blocks],
            "others": [asdict(other) for other in self.others],
            "verify": None if self.verify is None else self.verify.to_json(),
            "notes": list(self.notes),
        }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
