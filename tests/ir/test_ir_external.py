"""Tensors whose content lies beside the model."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.load import load
from tests.ir.samples import value


def external(name, location, *, dims=(4,), offset="0", length="16"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", offset), ("length", length)):
        if text is not None:
            tensor.external_data.add(key=key, value=text)
    return tensor


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "absent.bin"}, "absent.bin.*No such file"),
        ({"location": "short.bin"}, "short.bin is too short: tensor 'w'"),
        ({"location": "good.bin", "offset": "4"}, "good.bin is too short: tensor 'w'"),
        ({"location": "good.bin", "length": "12"}, "'w' takes 16 bytes"),
        ({"location": "good.bin", "offset": "-4"}, "'w': .*offset"),
        ({"location": "good.bin", "length": "many"}, "'w': .*length"),
        ({"location": "good.bin", "dims": (-4,)}, "'w'"),
        ({"location": "good.bin", "dims": (1 << 40, 1 << 40), "length": None}, "too short"),
        ({"location": "folder"}, "not a regular file"),
        ({"location": ""}, "without a usable location"),
        ({"location": "a\0b"}, "without a usable location"),
        ({"location": "../outside.bin"}, "leaves the model's folder"),
        ({"location": "folder/../../outside.bin"}, "leaves the model's folder"),
        ({"location": "link.bin"}, "leaves the model's folder"),
        ({"location": "/etc/hostname"}, "absolute"),
    ],
    ids=lambda item: "" if isinstance(item, str) else "-".join(map(str, item.values())),
)
def test_external_data_that_cannot_be_used_is_refused(entries, words, small, tmp_path):
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (folder / "good.bin").write_bytes(bytes(16))
    (folder / "short.bin").write_bytes(bytes(15))
    (tmp_path / "outside.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    small.graph.initializer[0].CopyFrom(external("w", **entries))
    path = folder / "model.onnx"
    path.write_bytes(small.SerializeToString())
    with pytest.raises(InvalidModel, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_in_a_cache_of_links_may_have_its_data_beside_the_real_file(small, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "view").mkdir()
    small.graph.initializer[0].CopyFrom(external("w", "w.bin"))
    (tmp_path / "blobs/1").write_bytes(small.SerializeToString())
    (tmp_path / "blobs/2").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (tmp_path / "view/model.onnx").symlink_to("../blobs/1")
    (tmp_path / "view/w.bin").symlink_to("../blobs/2")
    model = load(tmp_path / "view/model.onnx")
    assert value(model, "w").numpy().tolist() == [0, 1, 2, 3]


def test_external_data_is_found_from_the_base_dir_or_the_current_one(small, tmp_path, monkeypatch):
    (tmp_path / "w.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    small.graph.initializer[0].CopyFrom(external("w", "w.bin", offset="8"))
    assert value(load(small, base_dir=tmp_path), "w").numpy().tolist() == [2, 3, 4, 5]
    monkeypatch.chdir(tmp_path)
    assert value(load(small), "w").numpy().tolist() == [2, 3, 4, 5]


def test_an_element_type_of_a_later_onnx_is_carried_along(small, tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(16))
    small.graph.initializer[0].CopyFrom(external("w", "w.bin", length="12"))
    small.graph.initializer[0].data_type = 99
    constant = value(load(small, base_dir=tmp_path), "w").constant
    assert (constant.dtype, constant.nbytes) == (99, 12)
    with pytest.raises(InvalidModel, match="unknown tensor element type 99"):
        constant.numpy()


def test_external_data_that_changed_after_loading_is_refused(small, tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(16))
    small.graph.initializer[0].CopyFrom(external("w", "w.bin"))
    model = load(small, base_dir=tmp_path)
    (tmp_path / "w.bin").write_bytes(bytes(20))
    with pytest.raises(InvalidModel, match=r"'w'.*w\.bin has changed"):
        value(model, "w").numpy()
