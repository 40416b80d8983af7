"""What every task of a rebuild knows: declarations, sizes, the cut-off. Small, immutable, and sent to worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainer.rebuild.counters import resolve_counters
from trainer.schema.features import CounterSpec, FeatureSpec
from trainer.schema.hashing import sha256_code, sha256_json
from trainer.schema.logs import LogSpec
from trainer.schema.plain import as_plain
from trainer.schema.time import parse_duration

_CODE = ("trainer/logs", "trainer/rebuild", *(f"trainer/schema/{name}.py" for name in ("expression", "features", "time")))


@dataclass(frozen=True)
class Context:
    """Declarations and sizes of one rebuild.

    Attributes:
        spec: The log.
        features: The declared features.
        root: Folder of the rebuild.
        user_buckets: Partitions of a day by user.
        entity_buckets: Partitions of the entity pass.
        compression: Codec.
        max_history: L, tokens that a tail keeps.
        as_of_ms: Knowledge cut-off: rows and outcomes known later do not exist.
        coverage_floor: Share of a window below which a counter is masked.
    """

    spec: LogSpec
    features: FeatureSpec
    root: str
    user_buckets: int
    entity_buckets: int
    compression: str
    max_history: int
    as_of_ms: int
    coverage_floor: float = 0.5

    @property
    def folder(self) -> Path:
        return Path(self.root)

    @cached_property
    def counters(self) -> dict[str, CounterSpec]:
        """All counters, derived ones included."""
        return resolve_counters(self.spec, self.features)

    @property
    def max_window_ms(self) -> int:
        """The longest window that any row looks back, the negatives' candidates included."""
        windows = [counter.window_ms for counter in self.counters.values()]
        return max([*windows, self.negatives_window_ms], default=0)

    @property
    def negatives_window_ms(self) -> int:
        return parse_duration(self.spec.negatives.window, "data.negatives.window") if self.spec.negatives else 0

    @cached_property
    def log_declaration(self) -> dict[str, object]:
        """The specification without the places where it and the log lie: moving a log changes nothing."""
        return {name: value for name, value in as_plain(self.spec).items() if name not in ("root", "spec")}

    @cached_property
    def declarations_sha256(self) -> str:
        """Hash of log specification and features."""
        return sha256_json([self.log_declaration, as_plain(self.features)])

    def key(self, *parts: object) -> str:
        """Returns the content-addressed key of a task: code, declarations, and the parts that are its own."""
        return self.log_key(as_plain(self.features), *parts)

    def log_key(self, *parts: object) -> str:
        """Returns the key of a task that does not depend on the declared features."""
        return sha256_json([code_version(), self.log_declaration, self.user_buckets, self.compression, *parts])


def code_version() -> str:
    """Returns a hash of the code that decides what a rebuild writes; an edited kernel never reuses old files."""
    return sha256_code(*_CODE)
