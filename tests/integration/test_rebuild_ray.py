"""The same functions as Ray Core tasks: the same bytes, on two CPUs."""

import pytest

from tests import rebuild_lab as lab
from tests.rebuild_lab import bytes_of
from trainer.errors import DataError
from trainer.rebuild.engines import RayEngine, Task
from trainer.rebuild.store import read_columns

pytestmark = pytest.mark.integration
pytest.importorskip("ray", reason="Ray is not installed: pip install 'rewarm[ray]'")


@pytest.fixture(scope="module")
def cluster():
    """One small Ray for all tests of this file; engines use a running one and leave it running."""
    import ray

    ray.init(
        address="local", num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield ray
    ray.shutdown()


def test_ray_writes_the_bytes_of_the_local_pool(cluster, tmp_path):
    lab.write_log(tmp_path / "log", days=3, rows=120)
    log = lab.click_only(tmp_path / "log")
    local = lab.build(log, tmp_path / "local")
    on_ray = lab.build(log, tmp_path / "ray", engine="ray", workers=2)
    assert on_ray == local
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "local")


def test_an_error_of_a_task_is_raised_as_it_was(cluster, tmp_path):
    engine = RayEngine(2)
    with pytest.raises(DataError, match="cannot read a file of the rebuild") as caught:
        list(engine.results([Task(read_columns, (tmp_path / "absent.parquet",))]))
    assert caught.value.where == tmp_path / "absent.parquet"
    engine.close()
    assert cluster.is_initialized(), "what was running before goes on"
