"""Registry files: aliases, sealed releases, history.

root/<product>/versions/<id>/release.json      `ReleaseRecord`, written last; the folder is immutable from then on
root/<product>/versions/<id>/bundle/...        the model
root/<product>/versions/<id>/embeddings/...    its embeddings
root/<product>/versions/<id>/verdict.json      why
root/<product>/aliases.json                    `Aliases`, replaced atomically under a lock with compare-and-swap
root/<product>/history.jsonl                   `HistoryEntry` a line: one of `EVENTS` each
root/<product>/registry.lock                   held by whoever writes; empty
"""

from __future__ import annotations

from dataclasses import dataclass, field

RELEASE_VERSION = 1

VERSIONS = "versions"
RECORD = "release.json"
VERDICT = "verdict.json"
ALIASES = "aliases.json"
HISTORY = "history.jsonl"
LOCK = "registry.lock"

EVENTS = (
    "seal", "promote", "rollback", "freeze", "unfreeze", "reference", "retire", "verdict", "suite added", "suite removed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Aliases:
    """Where the pointers point.

    Attributes:
        production: Version that is live.
        previous: Version that was live before: the target of a rollback.
        reference: Frozen release that small losses are added up against.
        frozen: Reason of a freeze; None when promotions are allowed.
        revision: Grows by one with every change: the value that compare-and-swap compares.
    """

    version: int = RELEASE_VERSION
    production: str | None = None
    previous: str | None = None
    reference: str | None = None
    frozen: str | None = None
    revision: int = 0


@dataclass(frozen=True, kw_only=True)
class ReleaseRecord:
    """A sealed release: every file with its hash, the verdict it got, and the run it came from."""

    version: int = RELEASE_VERSION
    id: str
    as_of: str
    verdict: str
    parent: str | None
    files: dict[str, str]
    inputs_sha256: str
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """One line of the history.

    Attributes:
        at: When, UTC, ISO 8601.
        event: One of `EVENTS`.
        revision: Revision of the aliases that the event made; None where the aliases did not change. The line is written before
            the aliases are, so a last line whose revision was never reached tells of something that did not happen.
        release: Version that the event is about.
        as_of: Cut-off day of the judged run.
        verdict: PROMOTE, HOLD or REJECT.
        reason: Why, in the words of whoever did it.
        inputs_sha256: Hash of everything the judged run depended on: the same hash need not be judged again.
        notes: Anything else worth keeping.
    """

    at: str
    event: str
    revision: int | None = None
    release: str | None = None
    as_of: str | None = None
    verdict: str | None = None
    reason: str | None = None
    inputs_sha256: str | None = None
    notes: dict[str, str] = field(default_factory=dict)
