"""What the check of an absorbed copy found: `absorb.json`, and `release.absorbed` of the summary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CopyCheck:
    """One comparison of the absorbed copy with the judged one, on the holdout's rows.

    Attributes:
        name: ``finite``, ``mean``, ``quantiles``, ``ratio`` or ``traffic``.
        action: Action.
        got: What was measured; None where it is not finite.
        bound: Largest value allowed.
        passed: Whether it is within the bound.
    """

    name: str
    action: str
    got: float | None
    bound: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class AbsorbReport:
    """Whether the absorbed copy is served.

    Attributes:
        days: Holdout days that the copy has learned: day -> content hash.
        steps: Optimizer steps on them.
        judged: Hash of the judged bundle, whose trunk stays the parent of the next run.
        bundle: Hash of the bundle with the absorbed copy.
        checks: All comparisons.
        served: Whether all of them passed.
        sentence: In words.
    """

    days: dict[str, str]
    steps: int
    judged: str
    bundle: str
    checks: list[CopyCheck]
    served: bool
    sentence: str

    @classmethod
    def of(cls, days: dict[str, str], steps: int, judged: str, bundle: str, checks: list[CopyCheck]) -> AbsorbReport:
        """Decides: every check must have passed, or the judged copy is served."""
        failed = [check for check in checks if not check.passed]
        sentence = f"the served copy has learned {', '.join(sorted(days))} as well"
        if failed:
            first = failed[0]
            got = "not finite" if first.got is None else f"{first.got:.4g}"
            sentence = (
                f"the judged copy is served: after {', '.join(sorted(days))} the {first.name} of {first.action} moved by {got}, "
                f"more than {first.bound:.4g} ({len(failed)} of {len(checks)} checks failed)"
            )
        return cls(days=days, steps=steps, judged=judged, bundle=bundle, checks=checks, served=not failed, sentence=sentence)
