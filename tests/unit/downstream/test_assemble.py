import numpy as np
import pyarrow as pa

from trainer.config import DownstreamConfig
from trainer.downstream import assemble, lift
from trainer.downstream.assemble import with_exported


def rows(n=600, seed=0):
    rng = np.random.default_rng(seed)
    user_ND, item_ND = rng.normal(size=(n, 4)).astype(np.float32), rng.normal(size=(n, 4)).astype(np.float32)
    taste_N = (user_ND * item_ND).sum(1)
    label_N = (rng.random(n) < 1 / (1 + np.exp(-2 * taste_N))).astype(float)
    examples = pa.table({"user": np.arange(n) % 150, "feature_noise": rng.normal(size=n).astype(np.float32), "label_click": label_N})
    predictions = pa.table({"user": np.arange(n) % 150, "time": np.arange(n), "weight": np.ones(n), "label_click": label_N})
    pairs = pa.table({"user": np.arange(n) % 150, "item": np.arange(n), "time": np.arange(n), "dot": taste_N.astype(np.float32)})
    return examples, predictions, pairs, user_ND, item_ND


def test_exported_columns_stand_beside_the_features_of_the_same_rows():
    examples, predictions, pairs, user_ND, item_ND = rows()
    table, features, exported = assemble(examples, predictions, pairs, user_ND, item_ND, "click")
    assert features == ["feature_noise"] and exported == ["dot", "user_vector", "item_vector"]
    np.testing.assert_array_equal(np.stack(table["user_vector"].to_numpy(zero_copy_only=False)), user_ND)
    np.testing.assert_array_equal(table["dot"].to_numpy(), pairs["dot"].to_numpy())


def test_a_pair_scalar_that_tells_the_label_lifts_and_the_newest_rows_can_be_taken():
    table, features, exported = assemble(*rows(3000), "click")
    report = lift(table, "click", features, exported, DownstreamConfig(trees=40, max_rows=2000), seed=0)
    assert report.status == "ok" and report.rows <= 3000
    assert report.lift["ne"].high < 0 and report.lift["auc"].low > 0


def test_entity_that_is_not_exported_has_no_column():
    examples, predictions, pairs, user_ND, item_ND = rows(20)
    table, _, exported = assemble(examples, predictions, pairs, user_ND, None, "click")
    assert exported == ["dot", "user_vector"] and "item_vector" not in table.column_names
    table, _, exported = assemble(examples, predictions, pairs, None, None, "click")
    assert exported == ["dot"]
    other = with_exported(table, {}, np.zeros(20, np.float32), None, item_ND)
    assert "user_vector" not in other.column_names
    np.testing.assert_array_equal(np.stack(other["item_vector"].to_numpy(zero_copy_only=False)), item_ND)
