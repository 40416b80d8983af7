"""The registry of one product: versions that never change, and pointers that move one at a time."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError, ConfigError, RaceError, RegistryError
from trainer.release.records import History, checked_name, guarded, read_record, write_aliases
from trainer.release.sealing import copy_staged, publish, read_release, remove_release, sweep, verify_release
from trainer.schema.files import locked, sync
from trainer.schema.release import ALIASES, HISTORY, LOCK, VERDICT, VERSIONS, Aliases, HistoryEntry, ReleaseRecord
from trainer.schema.verdict import HOLD, PROMOTE, REJECT

LOCK_WAIT_S = 30.0

_VERDICTS = (PROMOTE, HOLD, REJECT)


@dataclass(frozen=True)
class VersionState:
    """A version as `Registry.status` sees it: its record, or what is wrong with it."""

    id: str
    record: ReleaseRecord | None
    problem: str | None = None


@dataclass(frozen=True)
class RegistryStatus:
    """Pointers, versions (oldest cut-off first) and history (oldest first)."""

    aliases: Aliases
    versions: list[VersionState]
    history: list[HistoryEntry]


class Registry:
    """Releases of one product below ``root/<product>``.

    A registry that does not exist yet is an empty one; the first write creates it. Files hold all state: any number of processes
    may use the same registry, and a process may be killed at any instruction.

    Args:
        root: ``registry.root``.
        product: Name of the product.

    Raises:
        ConfigError: If `product` cannot be a folder's name.
    """

    def __init__(self, root: Path, product: str = "default") -> None:
        self.folder = Path(root) / checked_name(product, "registry.product")
        self._versions = self.folder / VERSIONS
        self._history = History(self.folder / HISTORY)

    def aliases(self) -> Aliases:
        """Returns where the pointers point; all None in a registry that does not exist yet.

        Raises:
            RegistryError: If the root is no folder, or aliases.json cannot be read or understood.
        """
        self._check_folders()
        path = self.folder / ALIASES
        if not path.exists():
            return Aliases()
        return read_record(Aliases, path, f"restore it from a backup; the last line of {HISTORY} with a revision says where it pointed")

    def production_path(self) -> Path | None:
        """Returns the folder of the live release, every file verified; None if nothing is live.

        Raises:
            RegistryError: If the pointers cannot be read or point to a version that does not exist.
            CheckpointError: If a file of the release is missing or was altered.
        """
        return self._verified(self.aliases().production, "production")

    def reference_path(self) -> Path | None:
        """Returns the folder of the frozen reference, every file verified; None if there is none or it is what is live.

        Raises:
            RegistryError: If the pointers cannot be read or point to a version that does not exist.
            CheckpointError: If a file of the release is missing or was altered.
        """
        aliases = self.aliases()
        return self._verified(aliases.reference, "reference") if aliases.reference != aliases.production else None

    def _verified(self, version: str | None, alias: str) -> Path | None:
        if version is None:
            return None
        self._record(version, alias)
        verify_release(self._versions / version)
        return self._versions / version

    def check(self) -> Aliases:
        """Fails early on what would make sealing or promoting fail late; touches nothing.

        Returns:
            The aliases as found.

        Raises:
            RegistryError: If pointers are damaged or dangling, or the registry could not be written.
        """
        aliases = self.aliases()
        if aliases.production is not None:
            self._record(aliases.production, "production")
        place = self.folder
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise RegistryError(
                "the registry cannot be written", where=place, remedy="give this user write access to registry.root, or choose another"
            )
        return aliases

    def seal(
        self,
        version_id: str,
        staged: Path,
        *,
        as_of: str,
        verdict: str,
        parent: str | None,
        inputs_sha256: str,
        notes: dict[str, str] | None = None,
    ) -> ReleaseRecord:
        """Makes a staged folder an immutable version. Nothing points to it yet.

        Sealing the same content again changes nothing, so a run that was killed may simply seal again.

        Args:
            version_id: Name of the version.
            staged: Folder to copy: plain files only.
            as_of: Cut-off day of the run.
            verdict: PROMOTE, HOLD or REJECT; must be the one in the folder's verdict.json, if it has one.
            parent: Version that the weights were warm-started from.
            inputs_sha256: Hash of everything the run depended on.
            notes: Anything else worth keeping.

        Raises:
            RegistryError: If there is nothing to seal, other content has that name, or the disk refuses.
            CheckpointError: If the files do not read back as written.
        """
        checked_name(version_id, "version")
        _check_verdict(verdict, staged)
        self._check_folders()
        final = self._versions / version_id
        with guarded(self.folder):
            self._versions.mkdir(parents=True, exist_ok=True)
            partial, files = copy_staged(staged, self._versions, version_id)
            record = ReleaseRecord(
                id=version_id, as_of=as_of, verdict=verdict, parent=parent, files=files, inputs_sha256=inputs_sha256, notes=notes or {}
            )
            try:
                with self._lock():
                    sweep(self._versions)
                    if final.exists():
                        return self._same(final, record)
                    self._publish(partial, record, final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # gone already if it was published
        return record

    def promote(self, version: str, expected_revision: int, *, override: bool = False, reason: str | None = None) -> Aliases:
        """Makes a sealed version live: all of the release, or none of it.

        The first release that goes live also becomes the reference. Promoting the live version again changes nothing.

        Args:
            version: Version to promote.
            expected_revision: Revision of the aliases that the run was based on.
            override: Promote although the verdict is not PROMOTE; needs a reason, and is recorded.
            reason: Why.

        Raises:
            RegistryError: If promotions are frozen, the verdict forbids it, or the version does not exist.
            RaceError: If somebody else moved a pointer since that revision; a freeze that is over moved none.
            CheckpointError: If a file of the release is missing or was altered.
        """
        record = self._record(version)
        _check_allowed(record, override, reason)
        self._check_open(self.check(), version, expected_revision)
        verify_release(self._versions / version)
        with guarded(self.folder), self._lock():
            now = self.aliases()
            if now.production == version:
                return now
            self._check_open(now, version, expected_revision)
            self._record(version)  # somebody may have removed it since it was verified
            notes = {} if record.verdict == PROMOTE else {"override": f"the verdict was {record.verdict}"}
            return self._move(
                now, "promote", version, reason, production=version, previous=now.production, reference=now.reference or version,
                entry={"as_of": record.as_of, "verdict": record.verdict, "notes": notes},
            )  # fmt: skip

    def rollback(self, version: str | None = None, *, reason: str | None = None) -> Aliases:
        """Makes an earlier release live again, all of it; allowed during a freeze, and when the live files are damaged.

        Args:
            version: Version to return to; None takes the one that was live before. A second rollback swaps them back.
            reason: Why.

        Raises:
            RegistryError: If there is nothing to return to, or the version was never live.
            CheckpointError: If a file of that release is missing or was altered.
        """
        aliases = self.aliases()
        target = version if version is not None else aliases.previous
        if target is None:
            raise RegistryError("nothing to roll back to", where=self.folder, remedy="name an earlier release: version=...")
        record = self._record(target)
        if record.verdict != PROMOTE and not self._was_live(target, aliases):
            raise RegistryError(
                "a rollback returns to a release that was live", where=target, got=f"never live, verdict {record.verdict}",
                remedy="to make it live all the same: action=promote override=true reason=...",
            )  # fmt: skip
        verify_release(self._versions / target)
        with guarded(self.folder), self._lock():
            now = self.aliases()
            if now.production != aliases.production:
                raise RaceError(
                    "the pointer moved during the rollback: nothing changed", got=now.production, expected=aliases.production,
                    remedy="look at action=status and decide again",
                )  # fmt: skip
            if now.production == target:
                raise RegistryError("this release is live already", where=target, remedy="name an earlier release: version=...")
            self._record(target)
            gone = now.production is None or not (self._versions / now.production).is_dir()
            return self._move(now, "rollback", target, reason, production=target, previous=None if gone else now.production)

    def freeze(self, reason: str) -> Aliases:
        """Stops promotions until `unfreeze`.

        Raises:
            ConfigError: If the reason is blank.
        """
        if not reason.strip():
            raise ConfigError("a freeze needs a reason", where="reason", remedy="give reason=...")
        self._check_folders()
        with guarded(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                return self._move(self.aliases(), "freeze", None, reason, frozen=reason)

    def unfreeze(self, reason: str | None = None) -> Aliases:
        """Allows promotions again; changes nothing if they are allowed."""
        if self.aliases().frozen is None:
            return self.aliases()
        with guarded(self.folder), self._lock():
            return self._move(self.aliases(), "unfreeze", None, reason, frozen=None)

    def refer_to(self, version: str | None, *, reason: str | None = None) -> Aliases:
        """Moves the reference, against which small losses add up; None clears it, and the next release that goes live becomes it.

        Args:
            version: A sealed release.
            reason: Why.

        Raises:
            RegistryError: If there is no such release.
            CheckpointError: If a file of it is missing or was altered.
        """
        if version is not None:
            self._record(version)
            verify_release(self._versions / version)
        elif self.aliases().reference is None:
            return self.aliases()
        with guarded(self.folder), self._lock():
            if version is not None:
                self._record(version)
            return self._move(self.aliases(), "reference", version, reason, reference=version)

    def retire(self, keep: int, *, dry_run: bool, reason: str | None = None) -> list[str]:
        """Removes old versions: all but the newest, and never one that an alias points to.

        Versions whose record is damaged stay: what they were is for a person to find out.

        Args:
            keep: Newest versions that stay, by cut-off day, then by the order in which they were sealed.
            dry_run: Whether to say only what would go.
            reason: Why.

        Returns:
            What goes, oldest first.
        """
        self._check_folders()
        if not self._versions.is_dir():
            return []
        if dry_run:
            return self._retiring(keep)
        with guarded(self.folder), self._lock():
            gone = self._retiring(keep)
            for version in gone:
                line = HistoryEntry(at=_now(), event="retire", release=version, reason=reason)
                self._history.append(line, self.aliases().revision)
                remove_release(self._versions / version)
            sweep(self._versions)
        return gone

    def _retiring(self, keep: int) -> list[str]:
        status = self.status()
        aliases = status.aliases
        pointed = {aliases.production, aliases.previous, aliases.reference}
        sealed = {entry.release: place for place, entry in enumerate(status.history) if entry.event == "seal"}
        known = [state.record for state in status.versions if state.record is not None]
        known.sort(key=lambda record: (record.as_of, sealed.get(record.id, -1)))
        return [record.id for record in known[: max(0, len(known) - keep)] if record.id not in pointed]

    def record_event(self, event: str, *, reason: str | None = None, notes: dict[str, str] | None = None) -> None:
        """Adds a line to the history about something beside the releases, say a suite; moves no pointer."""
        self._append(HistoryEntry(at=_now(), event=event, reason=reason, notes=notes or {}))

    def record_verdict(
        self,
        verdict: str,
        *,
        as_of: str,
        inputs_sha256: str,
        release: str | None = None,
        reason: str | None = None,
        notes: dict[str, str] | None = None,
    ) -> None:
        """Adds a verdict to the history, also of a challenger that is not kept; moves no pointer.

        Args:
            verdict: PROMOTE, HOLD or REJECT.
            as_of: Cut-off day of the run.
            inputs_sha256: Hash of everything the run depended on.
            release: Version, if the challenger was sealed.
            reason: What decided, in a sentence.
            notes: Anything else worth keeping.
        """
        _check_verdict(verdict, None)
        entry = HistoryEntry(
            at=_now(), event="verdict", verdict=verdict, as_of=as_of, inputs_sha256=inputs_sha256, release=release, reason=reason,
            notes=notes or {},
        )  # fmt: skip
        self._append(entry)

    def _append(self, entry: HistoryEntry) -> None:
        self._check_folders()
        with guarded(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._history.append(entry, self.aliases().revision)

    def versions(self) -> list[Path]:
        """Returns the folders of all whole versions, oldest cut-off first; damaged ones are left out (`status` lists them)."""
        return [self._versions / state.id for state in self.status().versions if state.record is not None]

    def judged(self, inputs_sha256: str) -> HistoryEntry | None:
        """Returns the newest verdict on a run with these inputs, so that nothing is judged twice."""
        entries = self._history.entries(self.aliases().revision)
        return next((e for e in reversed(entries) if e.event == "verdict" and e.inputs_sha256 == inputs_sha256), None)

    def status(self) -> RegistryStatus:
        """Returns pointers, versions and history. Damaged versions are listed as such; files are not hashed."""
        aliases = self.aliases()
        with guarded(self._versions):
            names = sorted(p.name for p in self._versions.iterdir() if not p.name.startswith(".")) if self._versions.is_dir() else []
        named = {aliases.production, aliases.previous, aliases.reference} - {None}
        states = [self._state(name) for name in sorted({*names, *(str(name) for name in named)})]
        states.sort(key=lambda state: state.record.as_of if state.record else "")
        return RegistryStatus(aliases, states, self._history.entries(aliases.revision))

    def _state(self, name: str) -> VersionState:
        try:
            return VersionState(name, read_release(self._versions / name))
        except (RegistryError, CheckpointError) as error:
            return VersionState(name, None, f"{error.what}: {error.got}")

    def _check_folders(self) -> None:
        """Refuses a root that is a file, before anything else gives a stranger message."""
        with guarded(self.folder):
            for place in (self.folder.parent, self.folder, self._versions):
                if place.exists() and not place.is_dir():
                    raise RegistryError(
                        "the registry is not a folder", where=place, got="a file", remedy="give a folder, or a path that does not exist yet"
                    )

    def _record(self, version: str, alias: str | None = None) -> ReleaseRecord:
        checked_name(version, "version")
        try:
            return read_release(self._versions / version)
        except RegistryError as error:
            if alias is None:
                raise
            raise RegistryError(
                f"the alias {alias!r} points to a version that cannot be used", where=self.folder / ALIASES, got=f"{version}: {error.what}",
                remedy="return to a release that exists: scripts/release.py action=rollback [version=...]",
            ) from error  # fmt: skip

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with locked(self.folder / LOCK, LOCK_WAIT_S) as held:
            if not held:
                raise RegistryError(
                    "another process is writing to the registry", where=self.folder / LOCK, got=f"locked for {LOCK_WAIT_S:g} s",
                    remedy="wait for it to end and start again",
                )  # fmt: skip
            yield

    def _check_open(self, aliases: Aliases, version: str, expected_revision: int) -> None:
        if aliases.production == version:
            return
        if aliases.frozen is not None:
            raise RegistryError(
                "promotions are frozen: nothing promoted", where=self.folder, got=f"reason: {aliases.frozen}",
                remedy="scripts/release.py action=unfreeze, once the reason is gone",
            )  # fmt: skip
        if aliases.revision != expected_revision and not self._only_frozen(aliases.revision, expected_revision):
            raise RaceError(
                "the pointer moved during the run: nothing promoted", where=self.folder / ALIASES,
                got=f"revision {aliases.revision}, production {aliases.production}", expected=f"revision {expected_revision}",
                remedy="judge the challenger against the release that is live now",
            )  # fmt: skip

    def _only_frozen(self, revision: int, expected_revision: int) -> bool:
        """Tells whether nothing but freezes lies between two revisions: what the run was judged against is what it was."""
        entries = self._history.entries(revision)
        since = {entry.revision: entry.event for entry in entries if entry.revision is not None and entry.revision > expected_revision}
        return len(since) == revision - expected_revision and set(since.values()) <= {"freeze", "unfreeze"}

    def _move(
        self, now: Aliases, event: str, release: str | None, reason: str | None, *, entry: dict[str, Any] | None = None, **changes: Any
    ) -> Aliases:
        """Moves pointers: first the history line, then the aliases; the line is taken back if the aliases cannot be written."""
        moved = dataclasses.replace(now, revision=now.revision + 1, **changes)
        line = HistoryEntry(at=_now(), event=event, revision=moved.revision, release=release, reason=reason, **(entry or {}))
        size = self._history.append(line, now.revision)
        try:
            write_aliases(self.folder / ALIASES, moved)
        except BaseException:
            if self.aliases().revision != moved.revision:
                self._history.truncate(size)
            raise
        return moved

    def _publish(self, partial: Path, record: ReleaseRecord, final: Path) -> None:
        line = HistoryEntry(
            at=_now(), event="seal", release=record.id, as_of=record.as_of, verdict=record.verdict, inputs_sha256=record.inputs_sha256
        )
        size = self._history.append(line, self.aliases().revision)
        try:
            publish(partial, record, final)
        except BaseException:
            self._history.truncate(size)
            raise
        sync(self._versions)

    def _same(self, final: Path, record: ReleaseRecord) -> ReleaseRecord:
        if verify_release(final) != record:
            raise RegistryError(
                "another release has this name", where=final, got="other content", expected="the content that was sealed",
                remedy="seal under another name; a sealed version never changes",
            )  # fmt: skip
        return record

    def _was_live(self, version: str, aliases: Aliases) -> bool:
        entries = self._history.entries(aliases.revision)
        return version == aliases.previous or any(e.release == version and e.event in ("promote", "rollback") for e in entries)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _check_allowed(record: ReleaseRecord, override: bool, reason: str | None) -> None:
    if record.verdict == PROMOTE:
        return
    if not override:
        raise RegistryError(
            "the verdict forbids it: nothing promoted", where=record.id, got=f"verdict {record.verdict}", expected=PROMOTE,
            remedy="read the release's verdict.json; to promote all the same: override=true reason=...",
        )  # fmt: skip
    if not (reason or "").strip():
        raise ConfigError("an override needs a reason", where="reason", remedy="give reason=...: it is recorded")


def _check_verdict(verdict: str, staged: Path | None) -> None:
    if verdict not in _VERDICTS:
        raise RegistryError("not a verdict", got=verdict, expected=", ".join(_VERDICTS))
    path = None if staged is None else staged / VERDICT
    if path is None or not path.is_file():
        return
    try:
        written = json.loads(path.read_bytes())["verdict"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryError("the staged verdict cannot be read", where=path, got=error) from error
    if written != verdict:
        raise RegistryError("the staged verdict is not the one to be sealed", where=path, got=written, expected=verdict)
