"""The catalogue: 54 kinds of damage to event logs, and the words in which scan records them.

A kind names what went wrong; a ledger row names what can be seen of it. For most kinds the two are one word. Some kinds
cannot be told apart from outside (a read that hangs in the footer and one that hangs on the network both end at the deadline), so a
kind lists under `seen_as` the words that are right for it.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES, SHAPE, VALUES, IDS, ROWS, TIME, LABELS, RUNTIME = "bytes", "shape", "values", "ids", "rows", "time", "labels", "runtime"


@dataclass(frozen=True)
class FaultKind:
    """A kind of damage.

    Attributes:
        number: Number in the catalogue.
        name: Its name.
        family: What is damaged.
        response: What scan does by default: ``count``, ``cells`` (null), ``rows`` (set aside), ``chunk`` (a column chunk is null,
            or its row group set aside), ``file``, ``feature`` (null for the day), ``day`` (refused), ``stop``, ``retry`` (nothing lost),
            ``raise`` (an error of its own, nothing half-written).
        seen_as: Kinds in the ledger that are right for it; its own name if empty.
        weekly: Whether it belongs to the fifteen that ordinary operation produces week after week.
    """

    number: int
    name: str
    family: str
    response: str
    seen_as: tuple[str, ...] = ()
    weekly: bool = False

    @property
    def ledger_kinds(self) -> tuple[str, ...]:
        return self.seen_as or (self.name,)


# The weekly ones need no failing hardware and no malice: a job is killed, retried or finishes late; a producer is released with
# another schema, unit or default; a join finds nothing and fills in zeros or yesterday's values.
_CATALOGUE = (
    FaultKind(1, "truncated_file", BYTES, "file", weekly=True),
    FaultKind(2, "zero_tail", BYTES, "file"),
    FaultKind(3, "empty_file", BYTES, "file", weekly=True),
    FaultKind(4, "bit_flip_page", BYTES, "chunk"),
    FaultKind(5, "bit_flip_no_checksum", BYTES, "file", ("hash_mismatch",)),
    FaultKind(6, "zeroed_sector", BYTES, "chunk"),
    FaultKind(7, "bad_dictionary_page", BYTES, "chunk"),
    FaultKind(8, "footer_damage", BYTES, "file"),
    FaultKind(9, "footer_statistics", BYTES, "file", ("row_count_mismatch", "hash_mismatch")),
    FaultKind(10, "footer_hang", RUNTIME, "file", ("read_timeout",)),
    FaultKind(11, "decompression_bomb", BYTES, "chunk", ("decompression_bomb", "oversized_read")),
    FaultKind(12, "file_changed", RUNTIME, "file"),
    FaultKind(13, "unexpected_file", BYTES, "count", weekly=True),
    FaultKind(14, "missing_file", BYTES, "file", weekly=True),
    FaultKind(15, "missing_column", SHAPE, "feature", weekly=True),
    FaultKind(16, "swapped_columns", VALUES, "feature"),
    FaultKind(17, "wrong_dtype", SHAPE, "count"),
    FaultKind(18, "wrong_dtype_garbage", SHAPE, "cells", ("wrong_dtype",), weekly=True),
    FaultKind(19, "overflow", VALUES, "cells"),
    FaultKind(20, "typed_time", TIME, "count"),
    FaultKind(21, "time_unit", TIME, "rows"),
    FaultKind(22, "unit_change", VALUES, "feature", weekly=True),
    FaultKind(23, "non_finite", VALUES, "cells", weekly=True),
    FaultKind(24, "sentinel_spike", VALUES, "cells", ("sentinel_spike", "out_of_range"), weekly=True),
    FaultKind(25, "zero_filled", VALUES, "feature", weekly=True),
    FaultKind(26, "constant", VALUES, "feature"),
    FaultKind(27, "stale_copy", VALUES, "feature", weekly=True),
    FaultKind(28, "shuffled_column", VALUES, "feature"),
    FaultKind(29, "future_leakage", VALUES, "stop"),
    FaultKind(30, "out_of_range_id", IDS, "rows"),
    FaultKind(31, "resalted_ids", IDS, "count"),
    FaultKind(32, "id_collapse", IDS, "cells"),
    FaultKind(33, "duplicate_rows", ROWS, "count"),
    FaultKind(34, "duplicate_file", ROWS, "count", weekly=True),
    FaultKind(35, "missing_hours", ROWS, "count", weekly=True),
    FaultKind(36, "out_of_order", ROWS, "count"),
    FaultKind(37, "time_out_of_day", TIME, "rows"),
    FaultKind(38, "late_rows", TIME, "count", weekly=True),
    FaultKind(39, "label_flip", LABELS, "day"),
    FaultKind(40, "label_noise", LABELS, "day"),
    FaultKind(41, "labels_all_zero", LABELS, "day", weekly=True),
    FaultKind(42, "label_leak", VALUES, "stop"),
    FaultKind(43, "unripe_labels", LABELS, "cells"),
    FaultKind(44, "list_damage", SHAPE, "cells"),
    FaultKind(45, "invalid_text", VALUES, "cells"),
    FaultKind(46, "schema_drift", SHAPE, "count"),
    FaultKind(47, "mixed_version", VALUES, "chunk"),
    FaultKind(48, "slow_read", RUNTIME, "count"),
    FaultKind(49, "hanging_read", RUNTIME, "file", ("read_timeout",)),
    FaultKind(50, "transient_error", RUNTIME, "retry"),
    FaultKind(51, "worker_killed", RUNTIME, "retry"),
    FaultKind(52, "disk_full", RUNTIME, "raise", ("disk_full",)),
    FaultKind(53, "corrupt_manifest", BYTES, "stop"),
    FaultKind(54, "bot_user", ROWS, "rows"),
)

CATALOGUE = {kind.name: kind for kind in _CATALOGUE}

# What a budget makes of faults: always beside the row that names the cause.
CONSEQUENCES = ("empty_day", "too_few_rows", "too_many_bad_rows", "too_many_masked_cells", "too_many_masked_features", "untrusted_labels")

# Faults outside the catalogue, and words that stand for several of its kinds.
OTHERS = (
    "hash_mismatch", "row_count_mismatch", "read_timeout", "oversized_read", "unreadable_file", "out_of_range", "null_key", "null_spike",
    "missing_day", "unfinished_day", "repaired", "released", "unverified_bytes", "moved_together", "list_overflow",
)  # fmt: skip

FAULT_KINDS = (*dict.fromkeys(word for kind in _CATALOGUE for word in kind.ledger_kinds), *OTHERS, *CONSEQUENCES)
FAULT_KINDS = tuple(dict.fromkeys(FAULT_KINDS))
