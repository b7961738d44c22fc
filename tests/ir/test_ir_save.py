from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_fuse.errors import UnsupportedModel
from onnx_fuse.ir import patch
from onnx_fuse.ir import save as save_module
from onnx_fuse.ir.load import load
from onnx_fuse.ir.save import save, to_proto
from tests.ir.samples import zoo_files

GIB = 1 << 30


def listing(folder):
    return sorted(each.name for each in folder.iterdir())


def change(model, weight=None):
    """Replace x @ w + b by one node of ours with a new weight; return the new initializer."""
    graph = model.graph
    product, total = graph.nodes[0], graph.nodes[1]
    array = np.full((64, 64), 7, np.float32) if weight is None else weight
    packed = graph.add_initializer("packed", array)
    graph.add_node(
        "Fused",
        [graph.inputs[0], packed],
        [total.outputs[0], product.outputs[0]],
        domain="ours",
        name="fused",
        attributes={"heads": 2, "scale": 0.5, "kind": "rms", "list": [1, 2]},
        before=total,
    )
    graph.remove_dead([total, product])
    graph.add_opset("ours", 1)
    return packed


@pytest.mark.parametrize("path", zoo_files(), ids=lambda path: path.stem)
def test_an_unchanged_model_keeps_its_bytes(path, tmp_path):
    model = load(path)
    save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    assert listing(tmp_path) == ["out.onnx"]
    proto = onnx.load(path)
    assert to_proto(load(proto)).SerializeToString(deterministic=True) == proto.SerializeToString(
        deterministic=True
    )
    for graph in model.graphs():
        for node in graph.nodes:
            node.touch()  # everything is written anew, and still says the same
    assert to_proto(model) == proto


def test_unknown_fields_survive_a_change(small):
    """A field that a later ONNX may bring: number 1000, in the model and in the graph."""
    extra = b"\xc2\x3e\x05later"
    graph = small.graph.SerializeToString() + extra
    small.ClearField("graph")
    data = small.SerializeToString() + b"\x3a" + patch.varint(len(graph)) + graph + extra
    model = load(onnx.ModelProto.FromString(data))
    change(model)
    written = to_proto(model)
    assert written.SerializeToString().count(extra) == 2


def test_a_change_touches_nothing_else(small):
    model = load(small)
    change(model)
    actual = to_proto(model)
    expected = onnx.ModelProto()
    expected.CopyFrom(small)
    fused = helper.make_node(
        "Fused",
        ["x", "packed"],
        ["sum", "product"],
        "fused",
        domain="ours",
        heads=2,
        scale=0.5,
        kind="rms",
        list=[1, 2],
    )
    nodes = [fused, *small.graph.node[2:]]
    for node, wanted in zip(actual.graph.node, nodes, strict=True):
        assert {each.name: each for each in node.attribute} == {
            each.name: each for each in wanted.attribute
        }
        del node.attribute[:], wanted.attribute[:]
        assert node == wanted
    del expected.graph.node[:], actual.graph.node[:]
    added = numpy_helper.from_array(np.full((64, 64), 7, np.float32), "packed")
    kept = expected.graph.initializer[2]
    del expected.graph.initializer[:]
    expected.graph.initializer.extend([kept, added])
    expected.opset_import.add(domain="ours", version=1)
    assert actual == expected


def test_lists_of_graphs_are_written_anew(small):
    bodies = [helper.make_graph([], name, [], []) for name in ("first", "second")]
    small.graph.node[4].attribute.append(helper.make_attribute("bodies", bodies))
    model = load(small)
    model.graph.nodes[4].touch()
    assert to_proto(model) == small


def test_new_strings_are_written(small):
    model = load(small)
    model.graph.add_initializer("words", np.array(["a", "b"], dtype=object))
    (words,) = (each for each in to_proto(model).graph.initializer if each.name == "words")
    assert words.string_data == [b"a", b"b"]


def test_what_is_said_of_removed_values_goes_with_them(small):
    small.graph.value_info.append(helper.make_tensor_value_info("dead", TensorProto.FLOAT, [1]))
    small.graph.quantization_annotation.add(tensor_name="dead")
    model = load(small)
    model.graph.remove_dead([model.graph.nodes[3]])
    written = to_proto(model).graph
    assert [each.name for each in written.value_info] == ["sum", "ghost"]
    assert [each.tensor_name for each in written.quantization_annotation] == ["product"]
    assert [node.op_type for node in written.node] == ["MatMul", "Add", "Strange"]


def test_the_same_input_gives_the_same_bytes(small, tmp_path):
    for name in ("a", "b"):
        model = load(small)
        change(model)
        save(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    model = load(tmp_path / "a")
    save(model, tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def test_a_sparse_initializer_stays_unless_it_is_removed(small):
    for name in ("s", "t"):
        values = helper.make_tensor(name, TensorProto.FLOAT, [1], [7])
        indices = helper.make_tensor("i", TensorProto.INT64, [1], [2])
        small.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    small.graph.node.append(helper.make_node("Neg", ["s"], ["n"]))
    model = load(small)
    model.graph.remove_dead([model.graph.nodes[-1]])
    written = to_proto(model).graph
    assert [each.values.name for each in written.sparse_initializer] == ["t"]
    assert written.sparse_initializer[0] == small.graph.sparse_initializer[1]


@pytest.mark.parametrize("version", [3, 0, None])
def test_before_ir_version_4_a_changed_model_lists_constants_no_more_as_inputs(version, small):
    small.ClearField("ir_version")
    if version is not None:
        small.ir_version = version
    for name, shape in (("w", [4, 4]), ("b", [4]), ("unused", [2])):
        small.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    assert to_proto(load(small)) == small
    model = load(small)
    change(model)
    written = to_proto(model)
    assert written.ir_version == 4
    assert [each.name for each in written.graph.input] == ["x"]
    assert [each.name for each in written.graph.initializer] == ["unused", "packed"]


def make_external(proto, folder, name="w.bin", padding=4):
    """Save with w and b in one file, back to back as onnx.save does, and a twin of w."""
    data = bytes(padding)
    twin = TensorProto()
    twin.CopyFrom(proto.graph.initializer[0])
    twin.name = "twin"
    for tensor in proto.graph.initializer[:2]:
        raw = numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", name), ("offset", len(data)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(text))
        data += raw
    tensor = proto.graph.initializer[0]
    tensor.external_data.add(key="checksum", value="abc")
    twin.CopyFrom(tensor)
    twin.name = "twin"
    proto.graph.initializer.append(twin)
    folder.mkdir(exist_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return folder / "model.onnx"


def entries(tensor):
    return {entry.key: entry.value for entry in tensor.external_data}


def arrays(path):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_external_data_is_written_aligned_into_one_new_file(small, tmp_path):
    path = make_external(small, tmp_path / "in")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "fused.onnx"
    (tmp_path / "out" / "fused.onnx.data").write_bytes(b"old" * 9999)
    before = arrays(path)
    model = load(path)
    packed = change(model)
    save(model, target)
    written = onnx.load(target, load_external_data=False).graph.initializer
    assert {t.name: entries(t).get("location") for t in written} == {
        "unused": None,
        "twin": "fused.onnx.data",
        "packed": "fused.onnx.data",
    }
    offsets = [int(entries(t)["offset"]) for t in written if t.external_data]
    assert offsets == [0, 64]
    assert entries(written[1])["checksum"] == "abc"
    assert (tmp_path / "out" / "fused.onnx.data").stat().st_size == 64 + 64 * 64 * 4
    after = arrays(target)
    assert np.array_equal(after["twin"], before["twin"])
    assert np.array_equal(after["packed"], packed.numpy())


def test_tensors_that_shared_a_range_share_it_again(small, tmp_path):
    model = load(make_external(small, tmp_path / "in"))
    model.graph.add_opset("new", 1)
    save(model, tmp_path / "out.onnx")
    tensors = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    places = {t.name: entries(t).get("offset") for t in tensors}
    assert places == {"w": "0", "b": "64", "unused": None, "twin": "0"}
    assert (tmp_path / "out.onnx.data").stat().st_size == 64 + 16


def test_an_unchanged_external_model_keeps_its_bytes_and_its_files(small, tmp_path):
    path = make_external(small, tmp_path / "in", "weights/w.bin")
    (tmp_path / "out").mkdir()
    for target in (tmp_path / "in" / "copy.onnx", tmp_path / "out" / "copy.onnx"):
        for _ in range(2):
            save(load(path), target)
            assert target.read_bytes() == path.read_bytes()
            data = target.parent / "weights" / "w.bin"
            assert data.read_bytes() == (tmp_path / "in/weights/w.bin").read_bytes()
    assert listing(tmp_path / "in") == ["copy.onnx", "model.onnx", "weights"]
    assert listing(tmp_path / "out") == ["copy.onnx", "weights"]


def test_another_models_data_is_not_overwritten(small, tmp_path):
    path = make_external(small, tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "w.bin").write_bytes(b"another model's")
    save(load(path), tmp_path / "out" / "copy.onnx")
    assert (tmp_path / "out" / "w.bin").read_bytes() == b"another model's"
    after = arrays(tmp_path / "out" / "copy.onnx")
    assert all(np.array_equal(after[k], v) for k, v in arrays(path).items())


@pytest.mark.parametrize("name", ["w.bin", "model.onnx.data"])
def test_output_may_be_the_input_and_the_model_stays_usable(name, small, tmp_path):
    path = make_external(small, tmp_path / "in", name)
    before = arrays(path)
    model = load(path)
    packed = change(model)
    for target in (path, path, tmp_path / "again.onnx"):
        save(model, target)
        after = arrays(target)
        assert np.array_equal(after["twin"], before["twin"])
        assert np.array_equal(after["packed"], packed.numpy())
    expected = {"model.onnx", "model.onnx.data", name}
    assert set(listing(tmp_path / "in")) == expected


@pytest.mark.parametrize("is_link", [False, True], ids=["renamed", "linked"])
def test_model_that_stays_keeps_its_data(is_link, small, tmp_path):
    """Its data may have the name that the data of the one to write would get."""
    path = make_external(small, tmp_path / "in", "model.onnx.data")
    original, before = path.with_name("original.onnx"), arrays(path)
    path.rename(original)
    if is_link:
        path.symlink_to(original.name)
    for _ in range(2):
        model = load(original)
        packed = change(model)
        save(model, path)
        assert np.array_equal(arrays(path)["packed"], packed.numpy())
        after = arrays(original)
        assert all(np.array_equal(after[k], v) for k, v in before.items())
    expected = {"model.onnx", "original.onnx", "model.onnx.data", "model.onnx.1.data"}
    assert set(listing(tmp_path / "in")) == expected


def test_external_tensors_in_nodes_and_branches_move_too(tmp_path):
    def external(name, offset):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", "w.bin"), ("offset", offset), ("length", 8)):
            tensor.external_data.add(key=key, value=str(text))
        return tensor

    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    flag = helper.make_tensor_type_proto(TensorProto.BOOL, [])
    then = helper.make_graph(
        [helper.make_node("Constant", [], ["t"], value=external("", 0))],
        "t",
        [],
        [helper.make_value_info("t", kind)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["k"], ["e"])],
        "e",
        [],
        [helper.make_value_info("e", kind)],
        [external("k", 8)],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    graph = helper.make_graph(
        [node], "g", [helper.make_value_info("c", flag)], [helper.make_value_info("y", kind)]
    )
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    (tmp_path / "w.bin").write_bytes(np.array([1, 2, 3, 4], np.float32).tobytes())
    model = load(tmp_path / "m.onnx")
    assert model.graph.nodes[0].attr("then_branch").nodes[0].outputs[0].numpy().tolist() == [1, 2]
    model.add_opset("new", 1)
    save(model, tmp_path / "out.onnx")
    (tmp_path / "w.bin").unlink()
    again = load(tmp_path / "out.onnx").graph.nodes[0]
    assert again.attr("then_branch").nodes[0].outputs[0].numpy().tolist() == [1, 2]
    assert again.attr("else_branch").initializers[0].numpy().tolist() == [3, 4]


def test_a_model_that_outgrows_a_message_gets_a_data_file(small, tmp_path, monkeypatch):
    model = load(small)
    packed = change(model)
    monkeypatch.setattr(save_module, "MESSAGE_LIMIT", 8000)
    with pytest.raises(UnsupportedModel, match="save it to a file"):
        to_proto(model)
    save(model, tmp_path / "big.onnx")
    assert (tmp_path / "big.onnx").stat().st_size < 8000
    assert np.array_equal(arrays(tmp_path / "big.onnx")["packed"], packed.numpy())


BIG_SCRIPT = """
import json, resource, sys
import numpy as np
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.load import load
from onnx_fuse.ir.save import save

source, target = sys.argv[1:]
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load(source)
graph = model.graph
make = lambda: np.full((1 << 20,), 3, np.float32)
for index in range(16):
    graph.add_initializer("computed", Constant.computed(1, (1 << 20,), make))
save(model, target)
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024))
"""


def test_a_model_over_two_gib_is_streamed(small, tmp_path):
    """2.1 GiB of weights in a hole of a file, 16 new ones of 4 MiB: memory for a few of these."""
    path = make_external(small, tmp_path, padding=0)
    huge = small.graph.initializer.add(name="huge", data_type=TensorProto.FLOAT)
    huge.dims.extend([17, GIB // 32])
    huge.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "w.bin"), ("offset", 4096), ("length", GIB // 32 * 17 * 4)):
        huge.external_data.add(key=key, value=str(text))
    path.write_bytes(small.SerializeToString())
    os.truncate(tmp_path / "w.bin", 4096 + GIB // 32 * 17 * 4)
    with (tmp_path / "w.bin").open("r+b") as file:
        file.seek(4096 + GIB)
        file.write(np.float32(9).tobytes())
    target = tmp_path / "out.onnx"
    done = subprocess.run(
        [sys.executable, "-c", BIG_SCRIPT, str(path), str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) < 24 << 20
    model = load(target)
    values = {each.name: each for each in model.graph.initializers}
    assert all(each.constant.external.offset % 64 == 0 for each in model.graph.initializers[-16:])
    assert values["computed"].numpy()[5] == 3
    external = values["huge"].constant.external
    chunk = b"".join(external.file.chunks(external.offset + GIB, 4))
    assert np.frombuffer(chunk, np.float32)[0] == 9
    (tmp_path / "out.onnx.data").unlink()
