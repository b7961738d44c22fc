"""Every sample model of the zoo: all its expressible blocks are fused, and it computes the same."""

from __future__ import annotations

import json

import pytest

from tests.conftest import ZOO
from tests.zoo.check import check

FACTS = {name: json.loads(path.with_suffix(".json").read_text()) for name, path in ZOO.items()}
# The families whose every block has to be fused, whatever else happens.
FAMILIES = ("bert", "bert_nomask", "distilbert", "roberta", "minilm", "gpt2", "llama", "vit")
# Expressible blocks that are declined all the same, and why.
DECLINED = {
    "bert-ts-eager-static-qdq": ["quantized", "quantized"],
}


@pytest.mark.parametrize("name", sorted(ZOO))
def test_model_is_fused_and_computes_the_same(name: str) -> None:
    outcome = check(ZOO[name].parent, name)
    assert outcome.problem == ""
    if name in DECLINED:
        assert outcome.codes == DECLINED[name]
        assert outcome.fused == 0
    else:
        assert outcome.fused == FACTS[name]["expressible"]


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_there_from_each_exporter(family: str, exporter: str) -> None:
    assert (family, exporter) in {(f["architecture"], f["exporter"]) for f in FACTS.values()}


@pytest.mark.parametrize("field", ["attn", "dynamic"])
def test_families_are_there_in_each_form(field: str) -> None:
    forms = {"attn": {"eager", "sdpa"}, "dynamic": {True, False}}
    for exporter in ("torchscript", "dynamo"):
        found = {f[field] for f in FACTS.values() if f["exporter"] == exporter}
        assert found >= forms[field]
