"""`predictions.parquet`: what the gate judges, wherever it comes from.

user                     id; the unit of inference
request                  optional: slate; without it a slate is the user's day
item                     id
time                     request time, int64 ms or an Arrow timestamp
label_<action>           outcome; null = not ripe
production_<action>      production's score: a probability for binary actions, an expectation for the others; null = it logged none
challenger_<action>      the challenger's
counting_<action>        optional: the baseline that only counts
continued_<action>       optional: production trained on the same new days, at a launch
lightgbm_<action>        optional: LightGBM on the same features and training days
reference_<action>       optional: the frozen release that nightly losses are added up against
repeat_<action>          optional: production's recipe trained again with another seed (A/A), the floor of churn
value_production         value function of production's scores
value_challenger         value function of the challenger's
value_reference          optional: the reference's
anything else            a slice column
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PREDICTIONS_VERSION = 1

KEYS = ("user", "request", "item", "time")
LABEL = "label_"
PRODUCTION = "production_"
CHALLENGER = "challenger_"
COUNTING = "counting_"
CONTINUED = "continued_"
LIGHTGBM = "lightgbm_"
REFERENCE = "reference_"
REPEAT = "repeat_"
VALUE_PRODUCTION = "value_production"
VALUE_CHALLENGER = "value_challenger"
VALUE_REFERENCE = "value_reference"
SCORES = (PRODUCTION, CHALLENGER, COUNTING, CONTINUED, LIGHTGBM, REFERENCE, REPEAT)
WEIGHT = "weight"


def unscored(table: pa.Table) -> np.ndarray:
    """Returns bool [N], the rows in which some score of production, or its value, is null: nothing can be compared there.

    NaN is no null: a score that is not a number was made, and is a fault.
    """
    columns = [name for name in table.column_names if name.startswith(PRODUCTION) or name == VALUE_PRODUCTION]
    unscored_N = np.zeros(len(table), bool)
    for name in columns:
        if table[name].null_count:
            unscored_N |= np.asarray(pc.is_null(table[name]), bool)
    return unscored_N
