"""Other words for products."""

from __future__ import annotations

import onnx

from tests.rewording.wording import LETTERS, Wording, attributes_of, exchanged, rule


@rule("MatMul")
def as_einsum(w: Wording, node: onnx.NodeProto) -> str | None:
    x, y = node.input
    rank, other = w.rank(x), w.rank(y)
    if rank < 2 or other not in (2, rank):
        return None
    lead = LETTERS[: rank - 2]
    if other == rank and w.shapes[x][:-2] != w.shapes[y][:-2]:  # may broadcast
        return None
    return w.op("Einsum", x, y, equation=f"{lead}xy,{lead[: other - 2]}yz->{lead}xz")


@rule("MatMul")
def turned_product(w: Wording, node: onnx.NodeProto) -> str | None:
    x, y = node.input
    rank = w.rank(x)
    if rank < 2 or rank != w.rank(y):
        return None
    perm = exchanged(rank, -1, -2)
    return w.turn(w.op("MatMul", w.turn(y, perm), w.turn(x, perm)), perm)


@rule("MatMul")
def of_flat_rows(w: Wording, node: onnx.NodeProto) -> str | None:
    x, y = node.input
    weight, rank = w.matrix(y), w.rank(x)
    if weight is None or rank < 3:
        return None
    depth, columns = weight.shape
    flat = w.op("Reshape", x, w.ints(-1, depth))
    product = w.op(w.random.choice(("MatMul", "Gemm")), flat, y)
    return w.op("Reshape", product, w.joined(w.extents(x, 0, rank - 1), w.ints(columns)))


@rule("MatMul")
def with_turned_weight(w: Wording, node: onnx.NodeProto) -> str | None:
    weight = w.matrix(node.input[1])
    if weight is None:
        return None
    return w.op("MatMul", node.input[0], w.turn(w.const(weight.T), (1, 0)))


@rule("MatMul")
def as_convolution(w: Wording, node: onnx.NodeProto) -> str | None:
    weight = w.matrix(node.input[1])
    if weight is None or w.rank(node.input[0]) != 3:
        return None
    turned = w.turn(node.input[0], (0, 2, 1))
    return w.turn(w.op("Conv", turned, w.const(weight.T[:, :, None])), (0, 2, 1))


@rule("MatMul")
def of_one_axis_more(w: Wording, node: onnx.NodeProto) -> str | None:
    x, y = node.input
    if not 2 <= w.rank(x) == w.rank(y):
        return None
    return w.squeeze(w.op("MatMul", w.unsqueeze(x, 0), w.unsqueeze(y, 0)), 0)


@rule("MatMul")
def as_sum_of_products(w: Wording, node: onnx.NodeProto) -> str | None:
    x, y = node.input
    rank = w.rank(x)
    if rank not in (3, 4) or rank != w.rank(y):
        return None
    right = w.unsqueeze(w.turn(y, exchanged(rank, -1, -2)), rank - 2)
    products = w.op("Mul", w.unsqueeze(x, rank - 1), right)
    return w.squeeze(w.reduce("ReduceSum", products, -1), -1)


@rule("MatMul")
def of_folded_heads(w: Wording, node: onnx.NodeProto) -> str | None:
    x, y = node.input
    if w.rank(x) != 4 or w.rank(y) != 4 or w.shapes[x][:2] != w.shapes[y][:2]:
        return None
    folded = [w.op("Reshape", z, w.joined(w.ints(-1), w.extents(z, 2, 4))) for z in (x, y)]
    shape = w.joined(w.extents(x, 0, 3), w.extents(y, 3, 4))
    return w.op("Reshape", w.op("MatMul", *folded), shape)


@rule("Gemm")
def as_product_and_sum(w: Wording, node: onnx.NodeProto) -> str | None:
    given = attributes_of(node)
    if given.get("alpha", 1) != 1 or given.get("beta", 1) != 1 or len(node.input) < 3:
        return None
    sides = [
        w.turn(name, (1, 0)) if given.get(flag) else name
        for name, flag in zip(node.input, ("transA", "transB"), strict=False)
    ]
    return w.op("Add", w.op("MatMul", *sides), node.input[2])
