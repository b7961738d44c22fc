"""Products of several tensors, written out as products of two, compute what they did."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_fuse.ir.load import load
from onnx_fuse.ir.pairs import in_pairs
from onnx_fuse.ir.save import to_proto
from onnx_fuse.ir.text import dump
from tests.sessions import plain_session

SIZES = {"b": 2, "h": 3, "i": 4, "j": 5, "d": 6, "e": 7, "f": 3, "k": 2}
# The equation, which inputs are constants, and what has to come of it.
WRITTEN: dict[str, tuple[str, str, list[str]]] = {
    "from left to right": ("bij,bjd,bdf->bif", "", ["bij,bjd->bid", "bid,bdf->bif"]),
    "a weight with what it projects": ("bij,bjd,de->bie", "2", ["bjd,de->bje", "bij,bje->bie"]),
    "an outer product last": ("bi,hj,ij->bh", "", ["bi,ij->bj", "bj,hj->bh"]),
    "values and output of heads": ("bhij,bhjd,hde->bie", "2", ["bhij,bhjd->bhid", "bhid,hde->bie"]),
    "projections first": (
        "bid,dhk,bje,ehk->bhij",
        "13",
        ["bid,dhk->bihk", "bje,ehk->bjhk", "bihk,bjhk->bhij"],
    ),
    "a number last": ("bid,bjd,->bij", "2", ["bid,bjd->bij", "bij,->bij"]),
    "a number last that stands first": (",bid,bjd->bij", "0", ["bid,bjd->bij", ",bij->bij"]),
    "two weights last": ("bid,dk,ek->bie", "12", ["bid,dk->bik", "bik,ek->bie"]),
    "two tensors of fewer axes": ("bid,dk,ek->bie", "", ["dk,ek->de", "bid,de->bie"]),
    "an axis of one factor alone": ("bij,jd,de->be", "", ["bij,jd->bd", "bd,de->be"]),
    "an ellipsis": ("...ij,...jd,de->...ie", "2", ["...jd,de->...je", "...ij,...je->...ie"]),
    "a diagonal": ("bii,bij,jd->bd", "", ["bii,bij->bj", "bj,jd->bd"]),
}
KEPT: dict[str, str] = {
    "two factors": "bij,bjd->bid",
    "a result that isn't said": "ij,jd,de",
    "an ellipsis that is summed": "...ij,jd,de->ie",
}


def product(equation: str, constants: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return a model of one product and its inputs."""
    rng = np.random.default_rng(0)
    run = "bh" if "->..." in equation else ""
    terms = equation.partition("->")[0].replace("...", run).split(",")
    data = [rng.standard_normal([SIZES[c] for c in term]).astype(np.float32) for term in terms]
    names = [f"x{number}" for number in range(len(terms))]
    node = helper.make_node("Einsum", names, ["y"], "product", equation=equation)
    kind = onnx.TensorProto.FLOAT
    given = [name for name in names if name[1:] not in constants]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, kind, data[int(name[1:])].shape) for name in given],
        [helper.make_tensor_value_info("y", kind, None)],
        [
            onnx.numpy_helper.from_array(array, name)
            for name, array in zip(names, data, strict=True)
            if name not in given
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model, dict(zip(names, data, strict=True))


@pytest.mark.parametrize("name", WRITTEN)
def test_products_of_two_compute_the_same(name: str) -> None:
    equation, constants, expected = WRITTEN[name]
    model, data = product(equation, constants)
    made = in_pairs(load(model))
    assert made is not None
    proto = to_proto(made)
    found = [helper.get_attribute_value(node.attribute[0]).decode() for node in proto.graph.node]
    assert found == expected
    assert proto.graph.node[-1].name == "product"
    feeds = {value.name: data[value.name] for value in proto.graph.input}
    (result,) = plain_session(proto).run(None, feeds)
    wide = [array.astype(np.float64) for _, array in sorted(data.items())]
    np.testing.assert_allclose(result, np.einsum(equation, *wide), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KEPT)
def test_other_products_stay(name: str) -> None:
    model, _ = product(KEPT[name], "")
    assert in_pairs(load(model)) is None


def test_names_are_of_nothing_else() -> None:
    model, _ = product("ij,jd,de->ie", "")
    model.graph.node.append(helper.make_node("Neg", ["y"], ["y_pair_0"], "product_pair_0"))
    made = in_pairs(load(model))
    assert made is not None
    assert "y_pair_1" in dump(made)
