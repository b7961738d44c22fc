"""Writes the operators' page from the tables: `python -m onnx_fuse.op.docs > docs/op.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from onnx import TensorProto

from onnx_fuse.op import schema
from onnx_fuse.op.layout import PANEL
from onnx_fuse.op.schema import ATTRIBUTES, DIMS, OPERANDS, OUTPUTS, Attribute, Operand

_SUMMARY = f"""\
# FusedAttentionBlock, FusedCrossAttentionBlock

Domain `{schema.DOMAIN}`, version {schema.VERSION}.

One attention block of a transformer: the projections of query, key and value, their norm, rotation
and cache, the attention itself with its masks, and the output projection. `FusedAttentionBlock`
takes Q, K and V from one sequence, `FusedCrossAttentionBlock` K and V from another one (`context`).
Both follow the rules on this page and differ in nothing but their name.

A model carries a function of the same domain and name whose body is standard ONNX, so it runs on
hosts that don't know the operator. Where the model had an operator for the attention itself
(`Attention`, or one of `com.microsoft`), the body has that operator; a block with `seqlens_k` is
always written with `GroupQueryAttention`. When the blocks of a model need different bodies, the
second and later bodies are named with a suffix, `FusedAttentionBlock_2` to
`FusedAttentionBlock_{schema.BODIES}`; they are the same operator.
"""

_INPUTS = """\
## Inputs

Variadic, heterogeneous. The attribute `operands` names the inputs in order; a block has only those
that it needs, always in the order of this table, and no input is ever empty. Inputs named
`core_...`, behind the others, are read by the function body alone.
"""

_PRESENCE = """\
Each of Q, K and V is either given (`query`, `key`, `value`, or all three as `qkv`) or projected
(`q_weight`, `k_weight`, `v_weight`, or all three by `qkv_weight`). A source from which nothing is
projected is not given.
"""

_OUTPUTS = """\
## Outputs

`present_key` and `present_value` come together or not at all, and always with `past_key`. A node
lists what it has, in this order: with two or four outputs the last one is `attn_weights`.
"""

_SEMANTICS = """\
## Semantics

The steps, in this order; a step whose operands or attributes aren't there is left out.

1. Projection: `Q = hidden * q_weight + q_bias`, likewise K and V from their sources. Columns are
   ordered by head: column `n * head_dim + i` is element i of head n.
   (batch, seq, heads * size) -> (batch, heads, seq, size).
2. Norm of Q and of K, projected or given, but not of the past. `x` is the head_dim elements of one
   head of one row, or the heads * head_dim elements of a row if `*_norm_over_heads` is 1. Without
   the norm's weight `w` is 1, without its bias `b` is 0.
    - `"rms"`: `x / sqrt(mean(x^2) + epsilon) * w`
    - `"layer"`: `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * w + b`
    - `"l2"`: `x / max(sqrt(sum(x^2)), epsilon) * w`
3. Rotation of the leading R = rotary_embedding_dim elements of each head; the others stay:
   `x'[i] = x[i] * cos[i] + turned(x)[i] * sin[i]`, where
    - `interleaved = 0`: `turned(x) = [-x[R/2], ..., -x[R-1], x[0], ..., x[R/2-1]]`
    - `interleaved = 1`: `turned(x) = [-x[1], x[0], -x[3], x[2], ...]`
4. Cache: `present_key = concat(past_key, K)`, `present_value = concat(past_value, V)` along the
   sequence; these are K and V from here on. With `seqlens_k` the cache is a buffer of
   `max(past_seq, total_sequence_length)` positions, of which each batch uses its own
   `seqlens_k + 1`: the past is its first `start` positions, K and V are written behind them, what
   follows is 0. `start` is `seqlens_k + 1 - q_seq`, but 0 where `q_seq` is `total_sequence_length`
   (a first prompt, maybe padded at its end). Q and K are rotated by the caches' rows
   `start + row`, or `position_ids[batch, row]`, in a first prompt `position_ids[0, 0] + row`. Where
   past and present are one memory, it is written in place, and what follows stays as it was.
   With `window_cache = 1` the past's first `latest(start)` positions are the last ones before
   `start`, and the present's first `latest(seqlens_k + 1)` the last ones of all, where `latest(n)`
   is n if `n <= past_seq`, and else n less `past_seq - window_size + 1` as often as it takes.
   Scores, bias and causal order go by the places in the sequence, not in the cache.
5. Scores: `S = scale * Q * K^T`, (batch, num_heads, q_seq, total_seq). Query head n uses key and
   value head `n // (num_heads / kv_num_heads)`.
6. Softcap: `S = softcap * tanh(S / softcap)`.
7. Bias: `S = S + attn_bias`. With `seqlens_k` it has `total_sequence_length` columns; the others
   are behind all that is seen.
8. Mask: `S = where(attn_mask, S, mask_fill)`.
9. Causal order, with `is_causal = 1`: `S[row, column] = -inf` where `column > row + past_seq`; with
   `seqlens_k` where `column > row + start`, and with `window_size` where
   `column <= row + start - window_size`. With `seqlens_k`, whatever `is_causal` is, `column >
   seqlens_k` is hidden. Rows of a padded prompt behind a batch's length, `row > seqlens_k`, have
   the window of its last row if there are `sinks` or a `softcap`.
10. Softmax over columns: `P = exp(S - m) / sum(exp(S - m))` with `m = max(S)`. With `sinks`, the
    head's sink is one more score in the maximum and in the sum, and its weight is dropped.
11. NaN guard, with `zero_nan = 1`: `P = where(isnan(P), 0, P)`. With `zero_nan = 2`: `P = 0` in
    rows where all of S is -inf.
12. Context: `C = P * V`, heads joined again: column `n * v_head_dim + i` is element i of head n.
13. Gate: `C[:, :, n * v_head_dim + i] = C[:, :, n * v_head_dim + i] * gate[:, :, n, i]`.
14. Output: `C * out_weight + out_bias`.

A row whose scores are all -inf has NaN as its softmax, as ONNX Softmax has it, unless a sink takes
the whole weight or `seqlens_k` is given (then P is 0), or `zero_nan` isn't 0. A finite `mask_fill`
in a whole row gives each of its columns the same weight. NaN and infinities elsewhere go the way of
float32 arithmetic. All arithmetic is float32, except that the projections (steps 1 and 14), and
with "bf16" also the products with K and V (steps 5 and 12), may be computed as `precision` says.
The kernel divides by the softmax's sum behind step 12: elements of V beyond 3.4e38 / total_seq may
become infinite there.

On onnxruntime before 1.24 a window is one column wider, as its operator's was.
"""

_PANELS = f"""\
## Panels

Weights come as panels of {PANEL} columns, the order in which the kernel reads them: element
(row, column) of a matrix (rows, columns) is at `[column // {PANEL}][row][column % {PANEL}]` of a
tensor (ceil(columns / {PANEL}), rows, {PANEL}). What is left of the last panel is zero. In standard
ONNX the matrix is `Slice(Reshape(Transpose(panels, perm=[1, 0, 2]), [0, -1]), 0, columns, axis 1)`,
which hosts fold into a constant when they load the model.

Weights are float32 or, at every precision, bfloat16 if their number of rows is even. Two rows lie
side by side in bfloat16, as processors multiply them: element (row, column) is at
`[column // {PANEL}][row // 2][column % {PANEL}][row % 2]` of a tensor (ceil(columns / {PANEL}),
rows / 2, {PANEL}, 2). The panels as above are
`Reshape(Transpose(pairs, perm=[0, 1, 3, 2]), [0, -1, {PANEL}])`.
"""

_HISTORY = """\
## Version history

| version | change |
|---|---|
| 1 | first |
"""


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join(
        (
            _SUMMARY,
            "## Attributes\n\nEvery node has all of them.\n",
            _table(("attribute", "type", "meaning"), _attribute_rows()),
            _INPUTS,
            _table(
                ("operand", "shape", "type", "meaning", "with", "not with"),
                map(_operand_row, OPERANDS),
            ),
            _PRESENCE,
            "Dims, where they are neither attributes nor free:\n",
            _table(("dim", "is"), DIMS),
            _OUTPUTS,
            _table(
                ("output", "shape", "type", "meaning"),
                ((f"`{row.name}`", _shape(row.shape), "T", row.meaning) for row in OUTPUTS),
            ),
            "## Type constraints\n",
            _table(("type", "is"), _type_rows()),
            _SEMANTICS,
            _PANELS,
            _HISTORY,
        )
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    # A vertical bar would end a cell.
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in r] for r in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _attribute_rows() -> list[tuple[str, str, str]]:
    names = "Names of the inputs in order, separated by commas."
    return [("`operands`", "string", names), *map(_attribute_row, ATTRIBUTES)]


def _attribute_row(row: Attribute) -> tuple[str, str, str]:
    kind = "string" if row.type is str else row.type.__name__
    choices = ", ".join(f'"{choice}"' for choice in row.choices if isinstance(choice, str))
    meaning = f"{row.meaning} One of {choices}." if choices else row.meaning
    return f"`{row.name}`", kind, meaning


def _operand_row(row: Operand) -> tuple[str, ...]:
    needs = ", ".join(f"`{name}`" for name in row.needs).replace("|", "` or `")
    excludes = ", ".join(f"`{name}`" for name in row.excludes)
    return f"`{row.name}`", _shape(row.shape), _letter(row.types), row.meaning, needs, excludes


def _shape(dims: tuple[str, ...]) -> str:
    text = ", ".join(dim.replace("|", " or ") for dim in dims)
    return f"({text},)" if len(dims) == 1 else f"({text})"


def _letter(types: tuple[int, ...]) -> str:
    if schema.BOOL in types:
        return "B"
    if schema.INT32 in types or schema.INT64 in types:
        return "I" if schema.INT32 in types else "L"
    return "W" if schema.BFLOAT16 in types else "T"


def _type_rows() -> list[tuple[str, str]]:
    kinds = dict.fromkeys(row.types for row in OPERANDS)
    return [
        (_letter(kind), ", ".join(f"tensor({TensorProto.DataType.Name(t).lower()})" for t in kind))
        for kind in kinds
    ]


if __name__ == "__main__":
    sys.stdout.write(page())
