"""The ways in which exporters write attention down: factors of a product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import combinations, product

PLAIN = "plain"
# Extents of the samples, all different where a graph could mistake one for another.
SIZES = {"B": 2, "S": 5, "T": 7, "P": 3}
NUM_HEADS, HEAD_DIM, WIDE, HIDDEN, CONTEXT, OUT = 4, 8, 6, 24, 20, 10


@dataclass(frozen=True)
class Form:
    """One member of the product: a level of each factor, of which the first is the usual one."""

    projection: str = "add_right"
    order: str = "4d"
    scale: str = "mul"
    mask: str = "none"
    rope: str = "none"
    heads: str = "mha"
    dims: str = "static"
    norm: str = "none"
    extra: str = PLAIN

    def __str__(self) -> str:
        plain = vars(Form())
        return "-".join(f"{v}" for k, v in vars(self).items() if v != plain[k]) or PLAIN


LEVELS: dict[str, tuple[str, ...]] = {
    "projection": (
        *("add_right", "add_left", "no_bias", "some_bias", "gemm", "gemm_transposed", "gemm_alpha"),
        *("conv", "einsum2", "einsum3", "transposed", "cast", "dequantized", "fused_matmul"),
        "batch_norm",
        *("packed_3nd", "packed_n3d", "packed_nd3", "packed_vkq", "packed_gather", "packed_kv"),
        "packed_grouped",
    ),
    "order": ("4d", "k_direct", "3d", "seq_first", "einsum"),
    "scale": (
        *("mul", "div", "on_q", "roots", "folded", "sqrt_of_shape", "pow_of_shape", "late"),
        "fused",
    ),
    "mask": (
        *("none", "add2", "add3", "add4", "padding", "heads_bias", "two", "keep_inf"),
        *(
            "drop_finite",
            "keep_and",
            "select_then_add",
            "clamp",
            "causal",
            "times",
            "nan_guard",
            "keep_twice",
            "one_of_two_sums",
            "sum_of_two_parts",
            "times_amount",
            "renormalised",
            "zeroed",
            "zeroed_times",
        ),
    ),
    "rope": (
        *("none", "half", "half_split", "quarters", "permuted", "partial", "interleaved"),
        *("complex", "rows_behind"),
        *("operator", "operator_interleaved", "operator_offset"),
    ),
    "heads": ("mha", "gqa_expand", "gqa_tile", "gqa_concat", "mqa_broadcast", "folded"),
    "dims": ("static", "dynamic", "batch", "seq"),
    "norm": (
        *("none", "rms", "rms_weighted", "layer", "layer_written", "layer_moments"),
        *("l2", "rms_operator"),
    ),
    "extra": (
        *(PLAIN, "softcap", "sinks", "written_softmax", "log_of_sum", "cross", "wide_values"),
        *("raw_values", "no_output"),
    ),
}
FACTORS = tuple(field.name for field in fields(Form))
# Projections whose three parts have one size, or are made from one tensor.
_EQUAL = frozenset({"packed_n3d", "packed_nd3", "packed_gather"})
_AFTER_SOFTMAX = ("nan_guard", "renormalised", "zeroed", "zeroed_times")
_MASKED_LAST = ("keep_and", "clamp", "padding", "drop_finite", "zeroed", "zeroed_times")
_OWN_SOFTMAX = ("sinks", "written_softmax", "log_of_sum")
# Masks of any size, in which a logarithm of a sum of powers may be lost.
_ADDED = ("add2", "add3", "add4", "padding", "heads_bias", "two")
_OF_ANY_SIZE = (*_ADDED, "select_then_add", "clamp")
_PACKED = _EQUAL | {"packed_3nd", "packed_vkq", "packed_grouped"}


def is_possible(form: Form) -> bool:
    """Return whether the levels go together: there is such a graph, and it is attention."""
    grouped = form.heads != "mha"
    checks = (
        not (form.projection in _EQUAL and (grouped or form.extra == "wide_values")),
        not (form.projection in _PACKED and form.extra in ("cross", "raw_values")),
        not (form.projection == "packed_kv" and form.extra in ("wide_values", "raw_values")),
        not (form.projection == "packed_grouped" and form.extra == "wide_values"),
        not (form.heads in ("mqa_broadcast", "folded") and form.order not in ("4d", "k_direct")),
        not (form.extra == "raw_values" and grouped),
        not (form.extra == "cross" and form.mask in ("causal", "times_amount")),
        not (form.extra == "softcap" and form.mask == "times_amount"),
        not (form.rope.startswith("operator") and form.order in ("seq_first", "einsum")),
        not (form.scale == "late" and form.extra == "softcap"),
        not (form.scale == "fused" and form.order == "einsum"),
        not (form.mask in ("times", "times_amount", "keep_inf") and form.extra == "sinks"),
        not (form.extra in _OWN_SOFTMAX and form.mask in _AFTER_SOFTMAX),
        not (form.extra == "log_of_sum" and form.mask in _OF_ANY_SIZE),
        not (form.scale == "late" and form.mask in _MASKED_LAST),
    )
    return all(checks)


def all_forms() -> Iterator[Form]:
    """Yield the whole product."""
    for levels in product(*LEVELS.values()):
        form = Form(*levels)
        if is_possible(form):
            yield form


def _tuples(form: Form, strength: int) -> list[tuple[tuple[str, str], ...]]:
    return list(combinations(vars(form).items(), strength))


def covering(strength: int) -> list[Form]:
    """Return forms in which every possible combination of `strength` levels occurs.

    Greedy: for each combination that no form has yet, the usual form is changed to it, and its
    other levels in turn to those with which it covers most that is new.
    """
    covered: set[tuple[tuple[str, str], ...]] = set()
    found: list[Form] = []
    for names in combinations(FACTORS, strength):
        for levels in product(*(LEVELS[name] for name in names)):
            wanted = tuple(zip(names, levels, strict=True))
            if wanted in covered:
                continue
            form = _best(dict(wanted), covered, strength)
            if form is not None:
                covered.update(_tuples(form, strength))
                found.append(form)
    return found


def _best(
    wanted: dict[str, str], covered: set[tuple[tuple[str, str], ...]], strength: int
) -> Form | None:
    form = Form(**wanted)
    if not is_possible(form):
        return None
    for name in FACTORS:
        if name in wanted:
            continue
        candidates = [
            candidate
            for level in LEVELS[name]
            if is_possible(candidate := Form(**(vars(form) | {name: level})))
        ]
        form = max(candidates, key=lambda c: _new(c, name, covered, strength))
    return form


def _new(form: Form, name: str, covered: set[tuple[tuple[str, str], ...]], strength: int) -> int:
    """Count the combinations with this factor that no form has yet."""
    return sum(
        any(factor == name for factor, _ in entry) and entry not in covered
        for entry in _tuples(form, strength)
    )
