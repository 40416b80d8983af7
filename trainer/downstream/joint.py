"""Which final model goes out with new embeddings.

Embeddings and the model that reads them move together, and the one that goes out is the one that is judged. While the space stays, the
live model is replayed on the new features and stays too, unless a retrained one is shown to be as good as the live one is today. In a new
space the live model is worth nothing (its thresholds lie on coordinates that mean something else), so there the retrained one is judged
in its place, each model on its own features. Scores among them are delivered ones on both sides: behind the repair of the release that
exports them, as production's model has always read them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from trainer.downstream.final import final_scores, read_final
from trainer.downstream.replay import FAMILY, JOINT, REPLAY, check_rows, differences
from trainer.downstream.table import ripe
from trainer.errors import CheckpointError, ConfigError
from trainer.schema.downstream import FINAL_FILE, FinalModel
from trainer.schema.verdict import Check

RETRAIN = "train one with export.as_of=[days] and fit.day_weights=true, or keep the space by an exact warm start from the live bundle"


@dataclass(frozen=True)
class Choice:
    """The final model that goes out, now in the run's folder.

    Attributes:
        sentence: Which one it is, or why there is none.
        sha256: Hash of its file; null if none goes out.
        checks: What the gate judges.
    """

    sentence: str
    sha256: str | None = None
    checks: list[Check] = field(default_factory=list)


def first_final(out: Path, reason: str) -> Choice:
    """Chooses where no final model is live: the one trained in this run, if there is one.

    Args:
        out: Folder of the run that the retrained model was saved in; absent if none was.
        reason: Why none was.
    """
    if not (out / FINAL_FILE).exists():
        return Choice(f"No final model is released with the embeddings: {reason}.")
    model = read_final(out)
    return Choice(f"{_name(model)} is released with the embeddings: the first.", model.sha256)


def choose_final(
    out: Path, live: Path, table: pa.Table, before: pa.Table, action: str, *, space: str, live_space: str, reason: str
) -> Choice:
    """Chooses between the live final model and the one trained in this run, and says what the gate has to judge.

    Args:
        out: Folder of the run: the retrained model, absent if there is none; holds the chosen one afterwards.
        live: Folder of the live release's final model.
        table: Rows with the new features: user, label_<action> (null = not ripe), optional weight, and what the models take.
        before: The same rows with production's features.
        action: Action that the run's model predicts.
        space: Feature space of the new embeddings.
        live_space: That of the live ones.
        reason: Why no model was retrained.

    Returns:
        The choice. Checks of the model that goes out decide: ``joint_*`` of the retrained one, ``replay_*`` of the live one. In an
        unchanged space those of the other inform; in a new one, without a retrained model, ``joint_release`` fails.

    Raises:
        CheckpointError: If a model is damaged, or the live one belongs to other embeddings.
        ConfigError: If the live model predicts another action, or takes a column that the rows lack.
        DataError: If the two tables do not hold the same rows, or a column has another type than it had.
    """
    theirs, ours = read_final(live), read_final(out) if (out / FINAL_FILE).exists() else None
    _check_live(theirs, live, live_space, action)
    check_rows(table, before, action)
    new, old = ripe(table, action), ripe(before, action)
    joint: list[Check] = []
    old_N = final_scores(live, [old])[0]
    if ours is not None:
        both = ours.objective == theirs.objective == "binary"
        joint = differences(JOINT, new, action, final_scores(out, [new])[0], old_N, probabilities=both)
    if space != live_space:
        moved = f"the space changed from {live_space} to {space}"
        if ours is None:
            sentence = f"No final model can be released with the new embeddings: {moved}, and {reason}; {RETRAIN}."
            return Choice(sentence, None, [Check(name="joint_release", family=FAMILY, action=action, outcome="fail", sentence=sentence)])
        return Choice(f"{_name(ours)} is released together with the embeddings: {moved}.", ours.sha256, joint)
    replayed = differences(REPLAY, new, action, final_scores(live, [new])[0], old_N, probabilities=theirs.objective == "binary")
    if ours is not None and all(check.outcome == "pass" for check in joint if check.severity == "block"):
        sentence = f"{_name(ours)} is released with the embeddings: as good as the live one, in the same space."
        return Choice(sentence, ours.sha256, [*joint, *_informing(replayed)])
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(live, out)
    why = reason if ours is None else "the retrained one was not shown to be as good"
    sentence = f"The live final model ({_words(theirs)}) stays, released with the embeddings: {why}."
    return Choice(sentence, theirs.sha256, [*replayed, *_informing(joint)])


def _informing(checks: list[Check]) -> list[Check]:
    """Checks of the model that does not go out: they say why, and decide nothing."""
    return [replace(check, severity="info") for check in checks]


def _check_live(model: FinalModel, folder: Path, space: str, action: str) -> None:
    if model.feature_space != space:
        raise CheckpointError(
            "the live final model belongs to other embeddings than those it was released with", where=folder, got=model.feature_space,
            expected=space, remedy="roll back to a release that is whole",
        )  # fmt: skip
    if model.action != action:
        raise ConfigError(
            "the live final model predicts another action", where="downstream.action", got=action, expected=model.action,
            remedy="keep the action, or make one release without a final model (downstream.enabled=false) and begin anew",
        )  # fmt: skip


def _name(model: FinalModel) -> str:
    return f"The final model trained in this run ({_words(model)})"


def _words(model: FinalModel) -> str:
    days = f" of {model.days[0]} to {model.days[-1]}" if model.days else ""
    return f"{model.library} for {model.action}{days}, space {model.feature_space}"
