"""Shape rules of contractions: products, convolutions, attention, recurrences; and of pools."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from onnx_fuse.analysis.dims.dim import Dim, ceil_quotient
from onnx_fuse.analysis.dims.order import broadcast, is_at_most, maximum
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.shapes.facts import (
    NOTHING,
    CallFacts,
    Fact,
    PartialShape,
    Rule,
    Shape,
    broadcast_shapes,
    of_rank,
)

# --- matrix products ------------------------------------------------------------------------------


def matmul_shape(left: Shape | None, right: Shape | None) -> PartialShape | None:
    """Return the shape of numpy.matmul's result, None if a rank is not known."""
    if not left or not right:
        return None
    rows = [] if len(left) == 1 else [left[-2]]
    columns = [] if len(right) == 1 else [right[-1]]
    batch = broadcast_shapes([left[:-2], right[:-2]])
    return None if batch is None else [*batch, *rows, *columns]


def _matmul(left: int = 0, right: int = 1, dtype: int | None = None) -> Rule:
    """MatMul of two inputs; the result's type is `dtype` or the left one's."""

    def rule(call: CallFacts) -> Sequence[Fact]:
        element_type = call.dtype(left) if dtype is None else dtype
        return [Fact(matmul_shape(call.shape(left), call.shape(right)), element_type)]

    return rule


def _fused_matmul(call: CallFacts) -> Sequence[Fact]:
    left, right = (
        _arranged(
            call.shape(index),
            bool(call.attr(f"trans{side}", 0)),
            bool(call.attr(f"transBatch{side}", 0)),
        )
        for index, side in ((0, "A"), (1, "B"))
    )
    return [Fact(matmul_shape(left, right), call.dtype(0))]


def _arranged(shape: Shape | None, transposed: bool, batch_transposed: bool) -> Shape | None:
    """Return the operand's shape as the product takes it; transBatch puts axis 0 second to last."""
    if shape is None or len(shape) < 2:
        return shape
    if batch_transposed:
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if transposed else shape


def gemm_shape(call: CallFacts, right: int) -> PartialShape:
    """Return the shape of a Gemm's result, whose right operand is at this input."""
    sides = (
        (call.shape(0), bool(call.attr("transA", 0))),
        (call.shape(right), not call.attr("transB", 0)),
    )
    return [None if shape is None or len(shape) != 2 else shape[axis] for shape, axis in sides]


def _gemm(call: CallFacts) -> Sequence[Fact]:
    return [Fact(gemm_shape(call, 1), call.dtype(0))]


def _einsum(call: CallFacts) -> Sequence[Fact]:
    shapes = all_known(call.shape(index) for index in range(len(call.inputs)))
    shape = None if shapes is None else einsum_shape(call.attr("equation", ""), shapes)
    return [Fact(shape, call.dtype(0))]


def einsum_shape(equation: str, shapes: Sequence[Shape]) -> PartialShape | None:
    """Return the shape of numpy.einsum's result, None if the equation does not fit the ranks."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        return None
    extents: dict[str, Dim] = {}
    ellipses: list[Shape] = []
    for term, shape in zip(terms, shapes, strict=True):
        before, dots, after = term.partition("...")
        middle = len(shape) - len(before) - len(after)
        if middle < 0 or (middle and not dots):
            return None
        pairs = [
            *zip(before, shape, strict=False),
            *zip(after, shape[len(before) + middle :], strict=True),
        ]
        for letter, dim in pairs:
            extents[letter] = broadcast(extents[letter], dim) if letter in extents else dim
        if dots:
            ellipses.append(shape[len(before) : len(before) + middle])
    if not arrow:
        once = sorted(letter for letter in extents if left.count(letter) == 1)
        right = ("..." if ellipses else "") + "".join(once)
    before, dots, after = right.partition("...")
    if any(letter not in extents for letter in before + after):
        return None
    middle_shape = (broadcast_shapes(ellipses) if ellipses and dots else ()) or ()
    return [*(extents[c] for c in before), *middle_shape, *(extents[c] for c in after)]


# --- convolutions and pools -----------------------------------------------------------------------


def _conv(weight: int = 1, dtype: int | None = None) -> Rule:
    """Convolution with the weight at this input; the result has `dtype` or the first input's."""

    def rule(call: CallFacts) -> Sequence[Fact]:
        source, kernel = call.shape(0), call.shape(weight)
        element_type = call.dtype(0) if dtype is None else dtype
        if source is None or kernel is None or len(source) < 3:
            return [Fact(of_rank(call.rank(0)), element_type)]
        window = call.attr("kernel_shape")
        sizes = list(kernel[2:]) if window is None else [Dim.of(size) for size in window]
        return [Fact([source[0], kernel[0], *_windows(call, source[2:], sizes)], element_type)]

    return rule


def _pool(call: CallFacts) -> Sequence[Fact]:
    source, window = call.shape(0), call.attr("kernel_shape")
    if source is None or window is None:
        return [Fact(of_rank(call.rank(0)), call.dtype(0))]
    shape = [*source[:2], *_windows(call, source[2:], [Dim.of(size) for size in window])]
    return [Fact(shape, call.dtype(0)), Fact(shape, TensorProto.INT64)]


def _windows(call: CallFacts, space: Sequence[Dim], sizes: Sequence[Dim]) -> list[Dim | None]:
    """Return how often the window fits on each axis."""
    rank = len(space)
    strides = call.attr("strides") or [1] * rank
    dilations = call.attr("dilations") or [1] * rank
    pads = call.attr("pads") or [0] * (2 * rank)
    automatic = call.attr("auto_pad", "NOTSET")
    if (
        len(sizes) != rank
        or len(strides) != rank
        or len(dilations) != rank
        or len(pads) != 2 * rank
    ):
        return [None] * rank
    result: list[Dim | None] = []
    for axis, dim in enumerate(space):
        span = (sizes[axis] - 1) * dilations[axis] + 1
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            result.append(ceil_quotient(dim, strides[axis]))
            continue
        padding = 0 if automatic == "VALID" else pads[axis] + pads[axis + rank]
        free = dim + padding - span
        if not call.attr("ceil_mode", 0):
            result.append(free // strides[axis] + 1)
        elif strides[axis] == 1:
            result.append(free + 1)
        else:
            both = (pads[axis], pads[axis + rank])
            result.append(_rounded_up(free, dim, both, strides[axis], span))
    return result


def _rounded_up(free: Dim, dim: Dim, pads: tuple[int, int], stride: int, span: Dim) -> Dim | None:
    """Return the number of windows with ceil_mode; one that starts behind the end is dropped."""
    count = ceil_quotient(free, stride) + 1
    if is_at_most(pads[1] + stride, span):  # then the last one starts before the end
        return count
    number, size = count.as_int(), dim.as_int()
    if number is None or size is None:
        return None
    return Dim.of(number - 1 if (number - 1) * stride >= size + pads[0] else number)


def _conv_transpose(call: CallFacts) -> Sequence[Fact]:
    source, kernel = call.shape(0), call.shape(1)
    if source is None or kernel is None or len(source) < 3:
        return [Fact(of_rank(call.rank(0)), call.dtype(0))]
    rank = len(source) - 2
    automatic, wanted = call.attr("auto_pad", "NOTSET"), call.attr("output_shape")
    channels = kernel[1] * int(call.attr("group", 1))
    if wanted is not None:
        sizes = map(Dim.of, wanted[-rank:])
        return [Fact([source[0], channels, *sizes], call.dtype(0))]
    strides = call.attr("strides") or [1] * rank
    dilations = call.attr("dilations") or [1] * rank
    pads = call.attr("pads") or [0] * (2 * rank)
    extra = call.attr("output_padding") or [0] * rank
    space: list[Dim | None] = [None] * rank
    if automatic == "NOTSET":
        space = [
            (dim - 1) * strides[i]
            + extra[i]
            + (kernel[i + 2] - 1) * dilations[i]
            + 1
            - pads[i]
            - pads[i + rank]
            for i, dim in enumerate(source[2:])
        ]
    return [Fact([source[0], channels, *space], call.dtype(0))]


def _global_pool(call: CallFacts) -> Sequence[Fact]:
    shape = call.shape(0)
    pooled = None if shape is None else [*shape[:2], *[Dim.of(1)] * (len(shape) - 2)]
    return [Fact(pooled, call.dtype(0))]


# --- attention and recurrences --------------------------------------------------------------------


def _attention(call: CallFacts) -> Sequence[Fact]:
    """Attention of opset 23 and later: (B, heads, S, D) or (B, S, heads * D).

    Outputs are Y, present K and V, scores.
    """
    query, key, value = (call.shape(index) for index in range(3))
    if query is None or key is None or value is None or not len(query) == len(key) == len(value):
        return [Fact(of_rank(call.rank(0)), call.dtype(0))]
    if len(query) == 4:
        heads, kv_heads = query[1], key[1]
        rows, columns, depth, v_depth = query[2], key[2], key[3], value[3]
        result = [query[0], heads, rows, v_depth]
    else:
        heads, kv_heads = Dim.of(call.attr("q_num_heads", 1)), Dim.of(call.attr("kv_num_heads", 1))
        rows, columns = query[1], key[1]
        depth, v_depth = key[2] // kv_heads, value[2] // kv_heads
        result = [query[0], rows, heads * v_depth]
    past = call.shape(4)
    if call.has(4):
        columns = columns + past[2] if past is not None else Dim.of(0)
    total = None if call.has(4) and past is None else columns
    return [
        Fact(result, call.dtype(0)),
        Fact([query[0], kv_heads, total, depth], call.dtype(1)),
        Fact([query[0], kv_heads, total, v_depth], call.dtype(2)),
        Fact([query[0], heads, rows, total], call.dtype(0)),
    ]


def _packed_attention(call: CallFacts) -> Sequence[Fact]:
    """com.microsoft Attention: (B, S, hidden) times a packed weight, whose V part is the width."""
    shape, weight = call.shape(0), call.shape(1)
    if shape is None or weight is None or len(shape) != 3 or len(weight) != 2:
        return [Fact([None] * 3, call.dtype(0))]
    sizes = call.attr("qkv_hidden_sizes")
    width = Dim.of(sizes[2]) if sizes else weight[1] // 3
    present: list[Dim | None] = [None] * 5
    if not sizes and (heads := call.attr("num_heads")):
        past = call.shape(4)
        total = None if call.has(4) else shape[1]
        if past is not None and call.has(4):
            total = shape[1] + past[3]
        present = [Dim.of(2), shape[0], Dim.of(heads), total, width // heads]
    return [Fact([*shape[:2], width], call.dtype(0)), Fact(present, call.dtype(0))]


def _multi_head_attention(call: CallFacts) -> Sequence[Fact]:
    """com.microsoft MultiHeadAttention: query (B, S, hidden), or packed (B, S, heads, 3, depth)."""
    query, value = call.shape(0), call.shape(2)
    heads = call.attr("num_heads", 1)
    if query is None:
        return [Fact([None] * 3, call.dtype(0))]
    if len(query) == 5:
        width: Dim | None = query[2] * query[4]
    elif value is not None and len(value) == 3:
        width = value[2]
    elif value is not None and len(value) == 4:
        # (B, heads, columns, depth): of another sequence.
        width = value[1] * value[3]
    else:
        width = None
    depth = None if len(query) != 3 else query[2] // heads
    v_depth = None if width is None else width // heads
    head_count, past = Dim.of(heads), call.shape(6)
    total = None if value is None or len(value) not in (3, 4) else value[len(value) - 2]
    if total is not None and call.has(6):
        total = None if past is None or len(past) != 4 else past[2] + total
    return [
        Fact([*query[:2], width], call.dtype(0)),
        Fact([query[0], head_count, total, depth], call.dtype(0)),
        Fact([query[0], head_count, total, v_depth], call.dtype(0)),
    ]


def _grouped_query_attention(call: CallFacts) -> Sequence[Fact]:
    """com.microsoft GroupQueryAttention: query (B, S, heads * depth), K and V perhaps behind it."""
    query, past = call.shape(0), call.shape(3)
    heads, kv_heads = call.attr("num_heads", 1), call.attr("kv_num_heads", 1)
    if query is None or len(query) != 3:
        return [Fact([None] * 3, call.dtype(0))]
    depth = query[2] // heads if call.has(1) else query[2] // (heads + 2 * kv_heads)
    # Past and present may be one buffer that is longer than what it holds; input 6 is the total
    # length.
    total, length = call.item(6), None
    if past is not None and total is not None and total.bounds()[0] >= 0:
        length = maximum(past[2], total)
    dtype = call.dtype(3) if past is not None else call.dtype(0)
    present = Fact([query[0], Dim.of(kv_heads), length, depth], dtype)
    return [Fact([*query[:2], depth * heads], call.dtype(0)), present, present]


def _reordered(call: CallFacts) -> Sequence[Fact]:
    """Channels in blocks, or not any more: where they stand, and how many they are without them."""
    shape, count = call.shape(0), call.attr("channels")
    if shape is None or len(shape) < 3:
        return [Fact(of_rank(call.rank(0)), call.dtype(0))]
    leaves_blocks, last = count is not None, bool(call.attr("channels_last", 0))
    channels = shape[-1] if last and not leaves_blocks else shape[1]
    channels = channels if count is None else Dim.of(count)
    space = shape[1:-1] if last and not leaves_blocks else shape[2:]
    made = [*space, channels] if last and leaves_blocks else [channels, *space]
    return [Fact([shape[0], *made], call.dtype(0))]


def _rotary_embedding(call: CallFacts) -> Sequence[Fact]:
    return [call.like(0)]


def embed_layer_norm(dtype: int | None = None) -> Rule:
    """Rows of the word table for (B, S) ids; the result has `dtype` or the table's."""

    def rule(call: CallFacts) -> Sequence[Fact]:
        ids, table = call.shape(0), call.shape(2)
        rows = [None, None] if ids is None or len(ids) != 2 else ids
        width = None if table is None or len(table) != 2 else table[1]
        embedded = Fact([*rows, width], call.dtype(2) if dtype is None else dtype)
        return [embedded, Fact([rows[0]], TensorProto.INT32), embedded]

    return rule


def _recurrence(call: CallFacts) -> Sequence[Fact]:
    source, weight = call.shape(0), call.shape(2)
    if source is None or weight is None or len(source) != 3 or len(weight) != 3:
        return [Fact([None] * 4, call.dtype(0))]
    first, second, directions, hidden = source[0], source[1], weight[0], weight[2]
    if call.attr("layout", 0):
        state = Fact([first, directions, hidden], call.dtype(0))
        return [Fact([first, second, directions, hidden], call.dtype(0)), state, state]
    state = Fact([directions, second, hidden], call.dtype(0))
    return [Fact([first, directions, second, hidden], call.dtype(0)), state, state]


def _dft(call: CallFacts) -> Sequence[Fact]:
    shape = call.shape(0)
    if shape is None:
        return [NOTHING]
    axis = call.attr("axis", 1) if call.opset < 20 else -2
    if call.has(2):
        given = call.item(2)
        axis = None if given is None else given.as_int()
    if axis is None:
        return [Fact(of_rank(len(shape)), call.dtype(0))]
    result: list[Dim | None] = [*shape[:-1], Dim.of(2)]
    length = call.item(1)
    if call.has(1):
        result[axis] = length
    size = result[axis]
    if call.attr("onesided", 0) and call.attr("inverse", 0):  # from half a spectrum to real numbers
        result[-1] = Dim.of(1)
        result[axis] = length if call.has(1) else (shape[axis] - 1) * 2
    elif call.attr("onesided", 0) and size is not None:
        result[axis] = size // 2 + 1
    return [Fact(result, call.dtype(0))]


RULES: dict[str, Rule] = {
    "MatMul": _matmul(),
    "MatMulInteger": _matmul(dtype=TensorProto.INT32),
    "QLinearMatMul": _matmul(0, 3),
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Conv": _conv(),
    "ConvInteger": _conv(dtype=TensorProto.INT32),
    "QLinearConv": _conv(weight=3),
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), _global_pool),
    "Attention": _attention,
    "RotaryEmbedding": _rotary_embedding,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrence),
    "DFT": _dft,
    "com.microsoft:FusedMatMul": _fused_matmul,
    "com.microsoft:TransposeMatMul": _fused_matmul,
    "com.microsoft:FusedGemm": _gemm,
    "com.microsoft:FusedConv": _conv(),
    "com.microsoft:MatMulIntegerToFloat": _matmul(dtype=TensorProto.FLOAT),
    "com.microsoft:DynamicQuantizeMatMul": _matmul(dtype=TensorProto.FLOAT),
    "com.microsoft:Attention": _packed_attention,
    "com.microsoft:MultiHeadAttention": _multi_head_attention,
    "com.microsoft:GroupQueryAttention": _grouped_query_attention,
    "com.microsoft:RotaryEmbedding": _rotary_embedding,
    "com.microsoft:EmbedLayerNormalization": embed_layer_norm(),
    "com.microsoft.nchwc:ReorderInput": _reordered,
    "com.microsoft.nchwc:ReorderOutput": _reordered,
    "com.microsoft.nchwc:Conv": _conv(),
    **{f"com.microsoft.nchwc:{name}": _pool for name in ("AveragePool", "MaxPool")},
    **{
        f"com.microsoft.nchwc:{name}": _global_pool
        for name in ("GlobalAveragePool", "GlobalMaxPool")
    },
}
