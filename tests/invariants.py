"""The invariants of a warm start: each rule, the tests that hold it, and mutations of the source that these tests must notice.

`tests/unit/warm_start/test_invariants.py` checks that this map is whole and up to date; `tests/proof/test_warm_start_invariants.py`
makes every mutation in a copy and demands that a test fails. Numbers are those of the warm start's specification.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WARM = "tests/unit/warm_start/test_"
_EXACT = WARM + "growth.py::test_growth_is_exact_and_nothing_is_dead"

APPLY, BUCKETS, MOMENTS, PLACES, PLAN, ROWS, SIDE, VERIFY = (
    f"trainer/warm_start/{name}.py" for name in ("apply", "buckets", "moments", "places", "plan", "rows", "side", "verify")
)
READ, SHARDS, TRAIN = "trainer/importing/read.py", "trainer/checkpoint/shards.py", "trainer/fit/train.py"


@dataclass(frozen=True)
class Invariant:
    """A rule.

    Attributes:
        rule: What must hold.
        tests: Ids of tests that fail where it does not.
        mutations: (file, text, replacement) that break it; the text stands in the file exactly once.
    """

    rule: str
    tests: list[str]
    mutations: list[tuple[str, str, str]] = field(default_factory=list)


INVARIANTS = {
    "A1": Invariant(
        "one fate a tensor, elements add up on both sides, unused rules are refused",
        [
            WARM + "plan.py::test_every_tensor_of_both_sides_has_one_fate_and_elements_add_up",
            WARM + "plan.py::test_an_unused_rule_is_refused",
        ],
        [
            (PLAN, "for name in source.shapes if name not in used]", "for name in source.shapes if not used]"),
            (PLAN, "    renames.refuse_unused()\n", ""),
        ],
    ),
    "A2": Invariant(
        "planning is pure, planning and applying are deterministic",
        [
            WARM + "plan.py::test_planning_is_pure_and_deterministic",
            WARM + "growth.py::test_planning_and_applying_twice_give_the_same_bits",
        ],
        [
            (ROWS, "torch.randn(len(new), *rows.shape[1:], generator=generator,", "torch.randn(len(new), *rows.shape[1:],"),
            (
                PLAN,
                "    fates = list(_folded(fates))\n",
                "    fates = list(_folded(fates))\n    import random\n\n    random.shuffle(fates)\n",
            ),
        ],
    ),
    "A3": Invariant(
        "the same shape and ids: weights, optimizer, outputs and first loss bit-equal",
        [WARM + "growth.py::test_identity_is_bit_equal_in_weights_optimizer_and_first_loss"],
        [
            (MOMENTS, "        return tensor.clone()\n", "        return torch.zeros_like(tensor)\n"),
            (APPLY, "    out[index] = values.to(out.dtype)", "    out[index] = values.to(out.dtype) * 1.000001"),
        ],
    ),
    "A4": Invariant(
        "added layers are bit-equal wherever they stand, and none of their entries is dead",
        [WARM + "growth.py::test_added_layers_are_bit_equal_wherever_they_stand", f"{_EXACT}[layers-sasrec]", f"{_EXACT}[layers-hstu]"],
        [
            (PLAN, '        return writes_stream(fate.target or "", target)\n', "        return False\n"),
            (PLAN, '        return writes_stream(fate.target or "", target)\n', "        return True\n"),  # zero times zero: dead for ever
            (PLAN, "    return len(axes) == 2 and axes[0] in STREAMS", "    return len(axes) == 3 and axes[0] in STREAMS"),
        ],
    ),
    "A5": Invariant(
        "wider feed-forward layers and added heads are exact and alive",
        [f"{_EXACT}[{name}]" for name in ("ffn-sasrec", "heads-sasrec", "heads-hstu", "context-sasrec")],
        [
            (PLACES, '            return dimension == 1 and axis in INNER and axis != "heads"', "            return False"),
            (PLACES, '            return dimension == 1 and axis in INNER and axis != "heads"', "            return axis in INNER"),
            (PLACES, "        zero = ~kept & ~wider if reads else wider & held", "        zero = wider & held"),
            (PLACES, "        zero = ~kept & ~wider if reads else wider & held", "        zero = ~kept"),
        ],
    ),
    "A6": Invariant(
        "wider queries and keys are exact; without the root of the widths they are not",
        [f"{_EXACT}[head_dim-sasrec]", f"{_EXACT}[head_dim-hstu]", WARM + "growth.py::test_each_rule_is_needed[scale-sasrec]"],
        [
            (PLACES, "weight = np.full(after, (old_width / width) ** 0.5)", "weight = np.full(after, 1.0)"),
            (
                PLACES,
                "        zero = ~kept & ~wider if reads else wider & held",
                "        zero = ~kept & ~wider if reads else ~kept & False",
            ),
        ],
    ),
    "A7": Invariant(
        "a wider stream is exact under RMSNorm with gain and eps rescaled, under LayerNorm by whole multiples with unequal shares",
        [
            f"{_EXACT}[dim-sasrec]",
            f"{_EXACT}[dim-hstu]",
            WARM + "growth.py::test_an_eps_that_does_not_follow_the_width_is_refused_by_tensor",
            WARM + "growth.py::test_under_layer_norm_a_stream_grows_by_repetition_and_shares_differ",
            WARM + "growth.py::test_under_layer_norm_any_other_width_is_refused_by_tensor",
        ],
        [
            (PLACES, "weight = np.full(after, (before / after) ** 0.5)", "weight = np.full(after, 1.0)"),
            (PLACES, "        if abs(has - wanted) <= 1e-6 * wanted:", "        if True:"),
            (SIDE, "self.norm_eps * self.dim / width", "self.norm_eps"),
            (PLACES, "        return dimension == 0 or self.axes[0].startswith(_SELECTS)", "        return False"),
            (PLACES, "        return dimension == 0 or self.axes[0].startswith(_SELECTS)", "        return True"),
            (PLACES, "    return np.arange(1, copies + 1) / (copies * (copies + 1) / 2)", "    return np.full(copies, 1 / copies)"),
            (PLACES, "axis in STREAMS and self.source.layer_normed(axis) and after % before:\n", "False:\n"),
        ],
    ),
    "A8": Invariant(
        "any order and combination of growth is exact",
        [WARM + "growth.py::test_growth_in_two_runs_equals_growth_in_one", f"{_EXACT}[heads+head_dim-sasrec]"],
        [
            (
                PLACES,
                "        index = np.where(kept, head * old_width + entry, -1)",
                "        index = np.where(np.arange(after) < before, np.arange(after), -1)",
            )
        ],
    ),
    "A9": Invariant(
        "what cannot be exact (a normalised stream handed on, other options) is refused by tensor or asked for and measured",
        [
            WARM + "growth.py::test_layers_that_hand_on_the_normalised_stream_cannot_be_added_but_ours_can_behind_them",
            WARM + "growth.py::test_options_that_no_tensor_shows_must_agree",
            WARM + "plan.py::test_what_is_not_exact_must_be_asked_for_twice",
        ],
        [
            (PLAN, "layer[1] < target.normed_layers and not rules.approximate:", "False:"),
            (PLAN, "target.options.get(option) != value:", "False:"),
        ],
    ),
    "A10": Invariant(
        "rows move by id, duplicates are refused, reserved rows keep their meaning",
        [
            WARM + "rows.py::test_ids_move_by_key_never_by_position",
            WARM + "rows.py::test_duplicate_ids_are_refused",
            WARM + "rows.py::test_reserved_rows_keep_their_meaning",
            WARM + "growth.py::test_the_case_that_other_tools_lose",
            WARM + "buckets.py::test_a_whole_multiple_of_the_rows_is_exact",
            WARM + "buckets.py::test_listed_ids_that_become_hashed_start_as_their_mean_by_traffic",
        ],
        [
            (
                BUCKETS,
                "old.lookup(new.keys, np.int32)",
                "(np.arange(2, 2 + len(new.keys)) % old.rows).astype(np.int32)",
            ),
            (BUCKETS, "np.arange(RESERVED_ROWS, dtype=np.int32), index", "np.arange(RESERVED_ROWS, dtype=np.int32)[::-1], index"),
            (BUCKETS, "% before + RESERVED_ROWS", "// (rows // before) + RESERVED_ROWS"),
            (BUCKETS, "total[bucket_E] > 0", "total[bucket_E] < 0"),
            ("trainer/schema/vocabulary.py", "if self.keys.null_count or len(pc.unique(self.keys)) != len(self.keys):", "if False:"),
        ],
    ),
    "A11": Invariant(
        "new ids start as production served them, noise stays below what training gave, old items lose little room",
        [
            WARM + "rows.py::test_new_ids_start_as_what_production_did_with_them",
            WARM + "rows.py::test_other_starts_of_new_ids",
            WARM + "rows.py::test_noise_breaks_ties_and_stays_below_what_training_gave",
            WARM + "rows.py::test_old_items_lose_little_room_to_new_ones",
        ],
        [
            (ROWS, "    unseen = read(np.array([OOV_ROW])).double()", "    unseen = read(np.array([OOV_ROW])).double() * 0"),
            (ROWS, "drawn * (noise * _deviation(read, everyone))", "drawn * (10 * noise * _deviation(read, everyone))"),
            (
                "trainer/warm_start/measure.py",
                "lost_N = logit_NM.logsumexp(1) - logit_NM[:, ~is_new_M]",
                "lost_N = logit_NM.logsumexp(1) - logit_NM",
            ),
        ],
    ),
    "A12": Invariant(
        "a new feature changes no output at step 0, and learns",
        [WARM + "features.py::test_new_features_leave_old_outputs_and_learn_from_the_first_step"],
        [
            (PLAN, '    return fate.reason.startswith("zero")', "    return False"),
            (PLACES, 'else "init" if axis == "output" and self.new.endswith(".bias") else "zero"', 'else "init"'),
        ],
    ),
    "A13": Invariant(
        "a removed feature leaves its mean behind, and what that changes is measured",
        [
            WARM + "features.py::test_a_removed_table_leaves_its_mean_row_behind_and_the_effect_is_measured",
            WARM + "features.py::test_removed_features_of_items_and_tokens_leave_their_mean_row_too",
            WARM + "features.py::test_a_removed_number_is_measured_by_its_mean",
        ],
        [
            (APPLY, '(-mean if signed.startswith("-") else mean)', "mean"),
            (PLAN, '    "context.categorical.": (("context.gap", 1),),\n', ""),
            (APPLY, "torch.from_numpy(index != PAD_ROW)[:, None]", "torch.ones(len(index), 1)"),
        ],
    ),
    "A14": Invariant(
        "a new head leaves the old ones bit-equal and starts at its base rate",
        [
            WARM + "features.py::test_a_new_head_leaves_the_old_bit_equal_and_starts_at_its_base_rate",
            WARM + "features.py::test_verify_notices_a_new_head_that_starts_elsewhere",
        ],
        [
            (
                "models/heads.py",
                "    return torch.stack([x_NC @ weight_C for weight_C in weight_OC], dim=1)",
                "    return x_NC @ weight_OC.T * 1.0001",
            ),
            (PLACES, 'else "init" if axis == "output" and self.new.endswith(".bias") else "zero"', 'else "zero"'),
            (VERIFY, "if parity.exact and not distance <= parity.bound:", "if False:"),
        ],
    ),
    "A15": Invariant(
        "renamed heads and features keep their weights",
        [WARM + "plan.py::test_heads_and_features_are_renamed_by_key"],
        [(PLACES, "[self.renames(key, known) for key in self.source.keys[axis]]", "list(self.source.keys[axis])")],
    ),
    "A16": Invariant(
        "longer histories: old positions bit-equal, outputs equal for what production could read",
        [WARM + "growth.py::test_learned_positions_keep_old_ones_bit_equal_and_append"],
        [
            (
                PLACES,
                "        index = np.where(np.arange(after) < before, np.arange(after), -1)",
                "        index = np.where(np.arange(after) >= after - before, np.arange(after) - after + before, -1)",
            )
        ],
    ),
    "A17": Invariant(
        "fewer or narrower layers are refused by name unless asked for",
        [WARM + "growth.py::test_shrinking_is_refused_by_name_unless_asked_for"],
        [
            (PLACES, "        elif after < before:\n", "        elif False:\n"),
            (PLACES, "            if self.target.heads < self.source.heads or width < old_width:\n", "            if False:\n"),
        ],
    ),
    "A18": Invariant(
        "optimizer state moves by name and row; a new row moves no further than an old one that is met as often",
        [
            WARM + "moments.py::test_moments_move_by_name_and_row",
            WARM + "moments.py::test_the_order_of_parameters_in_the_optimizer_plays_no_part",
            WARM + "moments.py::test_scaled_and_repeated_parameters_scale_their_moments_as_gradients",
            WARM + "moments.py::test_a_new_row_never_moves_further_than_an_old_one_that_is_met_as_often",
            WARM + "moments.py::test_new_rows_start_with_the_second_moment_of_rows_that_are_met_as_often",
        ],
        [
            (
                MOMENTS,
                "replace(place, zero=np.broadcast_to(False, len(place.index)))",
                "replace(place, index=np.arange(len(place.index)) % place.size, zero=np.broadcast_to(False, len(place.index)))",
            ),
            (MOMENTS, "    if STATES[state] != 2:\n        return StateStart(0.0)\n", "    return StateStart(0.0)\n"),
            (MOMENTS, "place.gradient ** STATES[state]", "place.gradient"),
        ],
    ),
    "A19": Invariant(
        "shrink-perturb: (1, 0) copies, (0, 1) is a fresh start, tables, gains and biases stay",
        [WARM + "blend.py::test_shrink_and_perturb_meet_both_ends"],
        [
            (APPLY, "or len(axes) < 2 or axes[0] not in MIXED:", "or axes[0] not in MIXED:"),
            (
                APPLY,
                "return warm * rules.shrink + initial(rows) * rules.perturb",
                "return warm * rules.shrink + initial(rows) * (1 - rules.shrink)",
            ),
        ],
    ),
    "A20": Invariant(
        "a merge meets both ends bit-equal, and refuses strangers",
        [
            WARM + "blend.py::test_a_merge_meets_both_ends_and_leaves_new_rows_alone",
            WARM + "blend.py::test_a_merge_of_strangers_is_refused",
        ],
        [
            ("trainer/warm_start/merge.py", "    if parent != transfer.source:\n", "    if False:\n"),
            ("trainer/warm_start/merge.py", "            mixed[added] = new[added]\n", ""),
            ("trainer/warm_start/merge.py", "torch.lerp(old, new, alpha)", "torch.lerp(new, old, alpha)"),
        ],
    ),
    "A21": Invariant(
        "nothing is unpickled, no file chooses a class, no archive inflates or climbs",
        [
            "tests/unit/importing/test_read.py::test_pickled_objects_are_refused_by_name_and_never_run",
            "tests/unit/importing/test_read.py::test_checkpoints_that_name_classes_are_refused_before_anything_is_imported",
            "tests/unit/importing/test_read.py::test_an_archive_that_inflates_or_climbs_is_refused",
        ],
        [
            (READ, "weights_only=True", "weights_only=False"),
            (READ, "        if key in CLASS_KEYS:", "        if False:"),
            (READ, "member.compress_type != zipfile.ZIP_STORED or ", ""),
        ],
    ),
    "A22": Invariant(
        "values that are not finite and shapes that lie are refused by tensor; half precision is read exactly",
        [
            "tests/unit/checkpoint/test_shards.py::test_values_that_are_not_finite_are_refused_by_tensor",
            "tests/unit/checkpoint/test_shards.py::test_lies_are_refused_by_name",
            WARM + "plan.py::test_casts_are_stated_and_bf16_and_fp16_are_exact",
            "tests/unit/checkpoint/test_refusals.py::test_a_header_that_lies_is_refused_by_tensor",
        ],
        [
            (SHARDS, "if out.is_floating_point() and not _finite(out):", "if False:"),
            (SHARDS, "        if shapes.get(name) != wanted:\n", "        if False:\n"),
            (
                "trainer/checkpoint/header.py",
                "if not whole or not begin <= end <= space or end - begin != width * math.prod(shape):",
                "if False:",
            ),
            (
                APPLY,
                "    out[index] = values.to(out.dtype)",
                "    out[index] = values.bfloat16().to(out.dtype) if values.dtype == torch.float16 else values.to(out.dtype)",
            ),
        ],
    ),
    "A23": Invariant(
        "a report of every fate for people and programs; a transfer that does not measure as promised stops the run",
        [
            WARM + "plan.py::test_the_report_is_a_table_a_person_reads",
            WARM + "features.py::test_verify_refuses_a_transfer_that_lies",
            WARM + "plan.py::test_rows_are_weighted_by_traffic",
            "tests/unit/fit/test_begin.py::test_a_grown_challenger_starts_from_production_and_says_so",
        ],
        [
            (VERIFY, "(parity.exact and parity.max_difference > parity.bound)", "False"),
            (PLACES, "coverage = float(arrived / total) if total > 0 else", "coverage = 1.0 if total > 0 else"),
        ],
    ),
    "A24": Invariant(
        "days that production has learned are not learned again, but as replay, which does not count as progress",
        [
            "tests/unit/test_days.py::test_days_that_production_has_learned_are_not_new",
            "tests/unit/fit/test_fit.py::test_replayed_steps_do_not_count_as_progress",
        ],
        [
            ("trainer/days.py", "if trained.get(day) != contents[day]]", "]"),
            (TRAIN, "    losses = [entry.loss for entry in log if entry.new]", "    losses = [entry.loss for entry in log]"),
        ],
    ),
    "A25": Invariant(
        "a resumed run goes on bit-equal, and only with its own plan; a warm start begins a schedule of its own",
        [
            "tests/unit/fit/test_fit.py::test_every_part_that_keeps_state_resumes_exactly",
            "tests/unit/fit/test_fit.py::test_a_resumed_run_refuses_another_plan_of_the_same_length",
            "tests/unit/fit/test_fit.py::test_a_warm_run_warms_up_again_to_a_rate_of_its_own",
        ],
        [
            ("trainer/data/module.py", '        self.cursor = state["cursor"]\n', ""),
            ("trainer/data/module.py", '        if state["plan"] != self.identity:\n', "        if False:\n"),
            ("trainer/fit/schedule.py", "warmup = config.rewarm_steps if warm else config.warmup_steps", "warmup = config.warmup_steps"),
        ],
    ),
}
