from __future__ import annotations

import math
from pathlib import Path

import pytest

from onnx_fuse.errors import InvalidOption
from onnx_fuse.op.schema import PRECISIONS, Precision
from onnx_fuse.runtime.block_models import BlockShape
from onnx_fuse.runtime.library import cpu_features, get_library_path
from onnx_fuse.runtime.limits import Bound, Limits, Probe, weight_bytes

ROOT = Path(__file__).parents[2]
LIMITS = Limits(
    1, {"neon": 40e9, "neonbf16": 80e9, "avx2": 100e9, "avx512": 200e9, "avx512bf16": 400e9}
)


@pytest.mark.parametrize(
    ("precision", "isa", "unit", "rate"),
    [
        ("fp32", "avx512bf16", "avx512", 200e9),
        ("fp32", "avx2", "avx2", 100e9),
        ("bf16x3", "avx512bf16", "avx512", 200e9),  # three products at 400 are fewer
        ("bf16", "avx512bf16", "avx512bf16", 400e9),
        ("bf16", "avx512", "avx512", 200e9),
        ("bf16", "neonbf16", "neonbf16", 80e9),
        ("bf16", "neon", "neon", 40e9),
        ("fp32", "neonbf16", "neon", 40e9),
    ],
)
def test_unit_is_the_fastest_that_the_kernels_may_use(
    precision: Precision, isa: str, unit: str, rate: float
) -> None:
    assert LIMITS.unit(precision, isa) == (unit, rate)


def test_tiles_count_for_a_sixth_and_a_third() -> None:
    limits = Limits(1, {"avx512": 200e9, "amx": 3000e9})
    rates = [limits.unit(precision, "amx")[1] for precision in PRECISIONS]
    assert rates == [500e9, 1000e9, 3000e9]


def test_one_row_is_bound_by_reading_and_many_by_arithmetic() -> None:
    shape = BlockShape(512, 8)
    one = LIMITS.bound(shape, (1, 1), "fp32", reading_us=70.0, isa="avx512")
    assert one == Bound(70.0, "read")
    many = LIMITS.bound(shape, (2, 512), "fp32", reading_us=70.0, isa="avx512")
    flops = 2 * 1024 * 4 * 512**2 + 2 * (4 * 512 * 512 * 512)
    assert many == Bound(pytest.approx(flops / 200e9 * 1e6), "avx512")
    narrow = LIMITS.bound(shape, (2, 512), "bf16", reading_us=35.0, isa="avx512bf16")
    assert narrow == Bound(pytest.approx(flops / 400e9 * 1e6), "avx512bf16")


def test_weights_are_two_bytes_in_bfloat16_alone() -> None:
    shape = BlockShape(512, 8)
    assert [weight_bytes(shape, p) >> 20 for p in ("fp32", "bf16x3", "bf16")] == [4, 4, 2]


# --- the library


@pytest.fixture(scope="module")
def probe() -> Probe:
    path = ROOT / "build" / "probe" / "libonnx_fuse_probe.so"
    if not path.is_file():
        pytest.skip(f"{path.name} is not built; `make test` builds it")
    return Probe(path)


@pytest.mark.parametrize("threads", [1, 2])
def test_machine_has_peaks_of_what_its_kernels_use(probe: Probe, threads: int) -> None:
    limits = probe.limits(threads)
    assert limits.threads == threads
    assert limits.peaks
    assert set(limits.peaks) <= {*cpu_features(), "portable"}
    assert all(math.isfinite(rate) and rate > 0 for rate in limits.peaks.values())
    assert (limits.round_trip is None) == (threads == 1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 511, 4096, (1 << 20) + 64])
def test_a_reading_takes_some_time(probe: Probe, count: int, threads: int) -> None:
    seconds = probe.reader(count, threads)()
    assert 0 <= seconds < math.inf


def test_another_file_is_no_probe(tmp_path: Path) -> None:
    text = tmp_path / "probe"
    text.write_text("nothing")
    for path, why in (
        (tmp_path / "none", "No such file"),
        (text, "file too short|invalid ELF"),
        (Path(get_library_path()), "onnx_fuse_probe_unit"),
    ):
        with pytest.raises(InvalidOption, match=why) as error:
            Probe(path)
        assert f"--probe {path} is not the library" in str(error.value)
