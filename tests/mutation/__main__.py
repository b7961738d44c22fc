"""Disable each of the recogniser's checks and run the tests that reach it: one must fail.

python -m tests.mutation [PART OF A NAME ...] [--jobs N]. Exits with 1 if a mutant lives.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

import onnx_fuse
from tests.mutation.mutants import MUTANTS
from tests.mutation.run import Mutation

TESTS = (
    "tests/analysis/test_near_misses.py",
    "tests/analysis/test_no_attention.py",
    "tests/analysis/test_batches.py",
    "tests/analysis/test_content.py",
    "tests/analysis/test_in_part.py",
    "tests/analysis/test_some_positions.py",
    "tests/analysis/test_rotations.py",
    "tests/analysis/test_rotation_operators.py",
    "tests/analysis/test_scaled_rows.py",
    "tests/analysis/test_causal_order.py",
    "tests/analysis/test_half_precision.py",
    "tests/analysis/test_whole.py",
    "tests/analysis/test_weight_forms.py",
    "tests/analysis/test_choices.py",
    "tests/analysis/test_edited_scores.py",
    "tests/analysis/test_written_parts.py",
    "tests/analysis/test_written_softmax.py",
    "tests/analysis/test_shown_weights.py",
    "tests/analysis/test_asked_views.py",
    "tests/analysis/test_scaled_weights.py",
    "tests/analysis/test_block_ends.py",
    "tests/analysis/test_divided_twice.py",
    "tests/analysis/test_pairs.py",
    "tests/analysis/test_pairs_mask.py",
    "tests/analysis/test_score_sums.py",
    "tests/analysis/test_gate_sinks.py",
    "tests/analysis/test_gates.py",
    "tests/analysis/test_centred_scores.py",
    "tests/analysis/test_bounded_masks.py",
    "tests/analysis/test_bounds.py",
    "tests/analysis/test_summed_projections.py",
    "tests/analysis/test_repeated_heads.py",
    "tests/analysis/test_contraction.py",
    "tests/analysis/test_joined_scores.py",
    "tests/analysis/test_side_by_side.py",
    "tests/analysis/test_needed_lanes.py",
    "tests/analysis/test_entropy.py",
    "tests/analysis/test_reasons.py",
    "tests/analysis/test_no_softmax.py",
    "tests/analysis/test_norms.py",
    "tests/analysis/test_norm_behind_rotation.py",
    "tests/analysis/test_large_scales.py",
    "tests/analysis/test_cut_at_run_time.py",
    "tests/analysis/test_malformed.py",
    "tests/analysis/test_cache.py",
    "tests/passes/test_across_graphs.py",
    "tests/passes/test_fuse_attention_block.py",
    "tests/passes/test_computed_anyway.py",
    "tests/analysis/test_caches.py",
    "tests/analysis/test_operator_inputs.py::test_operator_is_declined",
    "tests/analysis/test_lifted.py::test_operator_gets_no_scale_that_it_does_not_take",
    "tests/analysis/test_grouped_query.py::test_operator_is_taken_with_its_projections",
    "tests/analysis/test_grouped_query.py::test_only_in_their_order_they_are_one_operand",
    "tests/analysis/test_grouped_query.py::test_operator_is_declined",
    "tests/analysis/test_lifted.py::test_lowest_number_of_a_bias_hides_behind_a_cache",
    "tests/analysis/test_forced.py",
    "tests/analysis/test_dependence.py",
    "tests/analysis/test_axes.py",
    "tests/analysis/test_same.py",
    "tests/analysis/test_shape_idioms.py::test_nothing_is_claimed_that_may_be_otherwise",
    "tests/analysis/test_positions.py",
    "tests/analysis/test_product.py::test_form_gives_the_record_of_what_it_means",
)
OPTIONS = ("-qq", "--no-header", "--no-summary", "-p", "no:cacheprovider", "--capture=sys")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only mutants whose names contain one of these")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.names or any(n in m.name for n in options.names)]
    mutation = Mutation(chosen, Path(onnx_fuse.__file__).parent, options.jobs)
    return pytest.main([*OPTIONS, *TESTS], plugins=[mutation])


if __name__ == "__main__":
    sys.exit(main())
