from pathlib import Path

import pytest

from trainer.config import RegistryConfig, ReleaseRunConfig
from trainer.errors import ConfigError, RegistryError
from trainer.release import run


def act(root: Path, action: str, **settings) -> str:
    return run(ReleaseRunConfig(registry=RegistryConfig(root=str(root), product="feed"), action=action, **settings))


def test_a_day_on_call(tmp_path: Path, capsys: pytest.CaptureFixture[str], sealed):
    root = tmp_path / "registry"
    assert act(root, "status") == "Nothing is live."
    assert not root.exists()
    for version in ("v1", "v2"):
        sealed(version)
    assert act(root, "promote", version="v1") == "v1 is live (before: nothing)."
    assert act(root, "promote", version="v2") == "v2 is live (before: v1)."
    assert act(root, "promote", version="v2") == "v2 is live already."
    assert act(root, "rollback", reason="[bold]worse") == "Rolled back from v2 to v1."
    assert act(root, "freeze", reason="incident") == "Promotions are frozen: incident."
    with pytest.raises(RegistryError, match="frozen"):
        act(root, "promote", version="v2")
    assert "they were frozen: incident" in act(root, "unfreeze")
    assert act(root, "unfreeze") == "Promotions were not frozen."
    assert act(root, "status") == "v1 is live."
    printed = capsys.readouterr().out
    for word in ("production", "previous", "reference", "FROZEN", "[bold]worse"):
        assert word in printed


@pytest.mark.parametrize(
    ("action", "settings"),
    [("status", {"reason": "x"}), ("freeze", {"version": "v1"}), ("rollback", {"override": True}), ("unfreeze", {"version": "v1"})],
)
def test_a_setting_without_effect_is_refused(tmp_path: Path, action: str, settings: dict):
    with pytest.raises(ConfigError, match="does not use this setting"):
        act(tmp_path / "registry", action, **settings)


def test_promote_lists_what_could_be_promoted(tmp_path: Path, sealed):
    sealed("v1")
    with pytest.raises(ConfigError, match="one of v1"):
        act(tmp_path / "registry", "promote")
    with pytest.raises(ConfigError, match="a freeze needs a reason"):
        act(tmp_path / "registry", "freeze")
