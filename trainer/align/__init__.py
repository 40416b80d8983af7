"""Old embeddings against new ones: what happened between them, and the rigid map that repairs what can be repaired. No torch.

``compare`` judges paired vectors; ``run`` does it for any two tables on disk (`scripts/compare_embeddings.py`); ``fit`` and
`Alignment.apply` are the repair, which the export uses for the vectors that downstream models read as features.
"""

from trainer.align.alignment import IDENTITY, ROTATION, SHIFT, Alignment, fit
from trainer.align.compare import Comparison, Pairs, compare, nearest
from trainer.align.run import alignment_values, run
from trainer.align.tables import VectorFile, VectorTable, pair, read_table

__all__ = [
    "IDENTITY", "ROTATION", "SHIFT", "Alignment", "Comparison", "Pairs", "VectorFile", "VectorTable", "alignment_values", "compare",
    "fit", "nearest", "pair", "read_table", "run",
]  # fmt: skip
