"""Every error that rewarm raises on purpose, and the exit code each one maps to.

    RewarmError
    +-- ConfigError       2   the configuration or a mapping is wrong
    +-- DataError         3   the logs are refused, absent or damaged beyond policy
    +-- CheckpointError   4   a bundle or checkpoint is damaged, foreign or incompatible
    +-- RegistryError     4   the registry cannot be read or is inconsistent
    +-- TrainingError     5   training diverged or could not go on
    +-- ExportError       6   embeddings or another artefact could not be written or published
    +-- RaceError         6   somebody else moved the pointer while we worked
    +-- Stopped          75   a signal asked us to stop; start again to go on

A message has one shape: what happened, then where, got, expected and remedy, a line each, as far as they are known.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_UNEXPECTED = 1
EXIT_REJECT = 10
EXIT_HOLD = 20


class RewarmError(Exception):
    """Base of all deliberate errors.

    Args:
        what: One sentence that says what happened.
        where: File, column, tensor or key the error is about.
        got: The offending value.
        expected: What would have been right.
        remedy: What the user can do now.
    """

    exit_code = EXIT_UNEXPECTED

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.expected = expected
        self.remedy = remedy
        super().__init__(self._text())

    def _text(self) -> str:
        parts = {"where": self.where, "got": self.got, "expected": self.expected, "remedy": self.remedy}
        lines = [f"  {name}: {value}" for name, value in parts.items() if value is not None]
        return "\n".join([self.what, *lines])

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default reduction, and errors cross process pools.
        return _rebuild, (type(self), self.what, self.where, self.got, self.expected, self.remedy)


def _rebuild(kind: type[RewarmError], what: str, where: object, got: object, expected: object, remedy: str | None) -> RewarmError:
    return kind(what, where=where, got=got, expected=expected, remedy=remedy)


class ConfigError(RewarmError):
    """The configuration is wrong: unknown key, wrong type, missing mapped column."""

    exit_code = 2


class DataError(RewarmError):
    """The logs are absent, refused by policy, or damaged beyond repair."""

    exit_code = 3


class CheckpointError(RewarmError):
    """A bundle or checkpoint is damaged, foreign or incompatible."""

    exit_code = 4


class RegistryError(RewarmError):
    """The registry cannot be read, is frozen, or is inconsistent."""

    exit_code = 4


class TrainingError(RewarmError):
    """Training diverged or could not go on."""

    exit_code = 5


class ExportError(RewarmError):
    """An artefact could not be written, verified or published."""

    exit_code = 6


class RaceError(RewarmError):
    """Another process moved the pointer that we wanted to move."""

    exit_code = 6


class Stopped(RewarmError):
    """A signal asked the run to stop; the same command goes on from its artefacts."""

    exit_code = 75


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a remedy that names the closest known word, or lists what is known.

    Args:
        name: The unknown word.
        known: All valid words.

    Returns:
        A sentence such as ``did you mean 'lr'?``.
    """
    words = sorted(map(str, known))
    close = difflib.get_close_matches(name, words, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(words) or 'none'}"
