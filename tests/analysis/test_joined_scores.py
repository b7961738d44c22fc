"""Scores of several sets of keys, joined before one softmax, are those of the joined keys."""

from __future__ import annotations

import numpy as np
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples import key_sets as sets
from tests.analysis.samples.key_sets import DEPTH, HEADS, KeySets
from tests.analysis.verdicts import check_declined, check_same

FUSED: dict[str, KeySets] = {
    "two sets": KeySets(),
    "two sets, split": KeySets(cut="Split"),
    "two sets of open extents": KeySets(dynamic="BST"),
    "two sets of open extents, split": KeySets(dynamic="BST", cut="Split"),
    "values that are joined": KeySets(cut=""),
    "values that are joined, of open extents": KeySets(cut="", dynamic="BST"),
    "each with a scale of its own": KeySets(factors=(0.5, -2.0)),
    "learned keys before others": KeySets(("learned", "own")),
    "learned keys behind others": KeySets(("own", "learned"), dynamic="BS"),
    "three sets": KeySets(("learned", "own", "other"), factors=(1.0, 0.5, 0.25)),
    "three sets in one sum": KeySets(("own", "other", "learned"), total="Sum"),
    "contexts in another order": KeySets(("own", "other", "learned"), order=(2, 0, 1)),
    "a mask over all": KeySets(joined=sets.masked_whole),
    "the same rows twice": KeySets(("own", "own"), cut=""),
    "a mask over one set": KeySets(scores=sets.masked),
    "a mask over the first set": KeySets(
        of="own", scores=sets.added("B", 1, 1, "S"), dynamic="BST", cut="Split"
    ),
    "a mask for each set": KeySets(
        masks={"own": sets.added("S", "S"), "other": sets.added("B", 1, 1, "T")},
        factors=(0.5, -2.0),
        dynamic="BST",
        cut="",
    ),
    "a mask by head beside learned keys": KeySets(
        ("learned", "other"), masks={"other": sets.added(sets.HEADS, 1, "T")}
    ),
    "a mask that is scaled": KeySets(
        scores=sets.each_of(sets.masked, sets.times(0.5), sets.masked, sets.times(-1.0))
    ),
    "hidden keys of one set": KeySets(scores=sets.hidden(-np.inf, shows=True), dynamic="BT"),
    "hidden keys of one set, the other way round": KeySets(
        scores=sets.hidden(-1e9, shows=False), dynamic="BST", cut="Split"
    ),
    "keys of one set that get a number, which is scaled": KeySets(
        scores=sets.each_of(sets.hidden(2.0, shows=True), sets.times(-0.5))
    ),
    "keys hidden by several numbers": KeySets(
        ("own", "other", "other"),
        masks={
            "other": sets.each_of(
                sets.hidden(-1e4, shows=True), sets.masked, sets.hidden(-2e4, shows=False, rank=1)
            ),
            "own": sets.each_of(sets.added("S"), sets.times(2.0)),
        },
    ),
    "keys that all batches share, for some queries of each": KeySets(
        keys=sets.shared_by_batches, rows=4
    ),
    "keys that all batches share, of open extents": KeySets(
        keys=sets.shared_by_batches, dynamic="BT"
    ),
    "one number for all keys of a set": KeySets(scores=sets.added_by_name, dynamic="BSTMR"),
    "one number for all of a number of keys": KeySets(scores=sets.added_by_name, dynamic="BM"),
}

DECLINED: dict[str, tuple[KeySets, Code]] = {
    "scores of one set that are capped": (KeySets(scores=sets.capped), Code.SCORES_CHANGED),
    "scores of one set that are rounded": (KeySets(scores=sets.rounded), Code.SCORES_CHANGED),
    "scores of one set that are chosen by arithmetic": (
        KeySets(scores=sets.chosen_by_arithmetic),
        Code.SCORES_CHANGED,
    ),
    "scores of one set that are bounded": (KeySets(scores=sets.bounded), Code.SCORES_CHANGED),
    "scores of one set that are chosen anew": (
        KeySets(scores=sets.chosen_anew),
        Code.SCORES_CHANGED,
    ),
    "a number of mask columns beside a name": (
        KeySets(scores=sets.masked, dynamic="BST"),
        Code.SHAPE_UNKNOWN,
    ),
    "a mask of one set by its scores": (KeySets(scores=sets.by_content), Code.SCORES_CHANGED),
    "a number of each query added to one set": (KeySets(scores=sets.by_query), Code.CONTENT_BIAS),
    "scores of one set scaled by row": (
        KeySets(scores=sets.scaled_by_row),
        Code.SCORES_CHANGED,
    ),
    "scores of one set times zero": (KeySets(scores=sets.times(0.0)), Code.SCORES_CHANGED),
    "queries that are scaled for one set": (
        KeySets(query=sets.times(2.0)),
        Code.SCORES_CHANGED,
    ),
    "queries whose lanes are turned around for one set": (
        KeySets(query=sets.turned_around),
        Code.SCORES_CHANGED,
    ),
    "keys of a cache": (KeySets(("cache", "own")), Code.SCORES_CHANGED),
    "many learned keys": (KeySets(("learned", "own"), learned=65), Code.SCORES_CHANGED),
    "learned keys alone": (KeySets(("learned", "learned")), Code.NO_SCORES),
    "keys that all batches share, for few queries of each": (
        KeySets(keys=sets.shared_by_batches, rows=3),
        Code.SCORES_CHANGED,
    ),
    "keys that all batches share, for an open number of queries": (
        KeySets(keys=sets.shared_by_batches, dynamic="S"),
        Code.SCORES_CHANGED,
    ),
    "a difference of contexts": (KeySets(total="Sub"), Code.SEVERAL_PRODUCTS),
    "a context that is read": (KeySets(context=sets.shown), Code.SEVERAL_PRODUCTS),
    "a context that is scaled": (KeySets(context=sets.times(2.0)), Code.SEVERAL_PRODUCTS),
    "weights that come twice": (KeySets(ends=1), Code.SEVERAL_PRODUCTS),
    "weights of the first set alone": (KeySets(order=(0,)), Code.UNSUPPORTED_OP),
    "keys of each row": (KeySets(("own", "each row")), Code.UNSUPPORTED_OP),
    "weights that are read": (KeySets(weights=sets.shown), Code.WEIGHTS_READ),
}


@pytest.mark.parametrize("name", FUSED)
def test_scores_of_several_sets_are_those_of_joined_keys(name: str) -> None:
    sample = FUSED[name].sample()
    result = onnx_fuse.fuse(sample.model, threshold=None)
    (block,) = result.report.blocks
    assert (block.status, block.num_heads, block.head_dim) == ("fused", HEADS, DEPTH), block
    check_same(sample, result.model)


@pytest.mark.parametrize("name", DECLINED)
def test_what_cannot_be_joined_is_declined(name: str) -> None:
    writer, code = DECLINED[name]
    check_declined(writer.sample, code)
