"""Writes a SASRec of RecTools as plain files that scripts/import_checkpoint.py reads. Run it in RecTools' own environment.

    python export_rectools.py CHECKPOINT FOLDER [--probes 64] [--seed 0]

CHECKPOINT is what RecTools saved (`model.save`, or a checkpoint of its trainer). RecTools unpickles it, so export only files that you
trust; what is written holds no object. This file needs torch and rectools, and nothing of rewarm.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main() -> None:
    """Exports one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--probes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        from rectools.models import SASRecModel, load_model  # only here: --help is for those too who have yet to find that environment
    except ImportError as error:
        parser.error(f"RecTools cannot be imported here ({error}): run this file in the environment that trained the model")
    read = SASRecModel.load_from_checkpoint if arguments.checkpoint.suffix == ".ckpt" else load_model
    export(read(arguments.checkpoint), arguments.folder, arguments.probes, arguments.seed)


def export(model: Any, folder: Path, probes: int = 64, seed: int = 0) -> None:
    """Writes weights, items, options and probes of a fitted SASRecModel."""
    folder.mkdir(parents=True, exist_ok=True)
    lightning = model.lightning_model.eval()
    ids = [value.item() if isinstance(value, np.generic) else value for value in model.data_preparator.item_id_map.external_ids]
    ids = ids[model.data_preparator.n_item_extra_tokens :]
    torch.save({name: tensor.cpu().contiguous() for name, tensor in lightning.state_dict().items()}, folder / "weights.pt")
    (folder / "items.json").write_text(json.dumps(ids))
    (folder / "options.json").write_text(json.dumps(options(model), indent=1))
    histories, scores = probe(lightning.torch_model, ids, model.session_max_len, probes, seed)
    (folder / "probe.json").write_text(json.dumps({"history": histories, "scores": scores}))
    print(f"{folder}: {len(ids)} items, {probes} probes")


def options(model: Any) -> dict[str, Any]:
    """Returns the settings that scores depend on, as the built model has them."""
    network = model.lightning_model.torch_model
    return {
        "n_blocks": model.n_blocks, "n_heads": model.n_heads, "n_factors": model.n_factors, "session_max_len": model.session_max_len,
        "dropout_rate": model.dropout_rate, "use_pos_emb": network.pos_encoding_layer.pos_emb is not None,
        "use_scale_factor": network.pos_encoding_layer.use_scale_factor, "use_key_padding_mask": network.use_key_padding_mask,
        "use_causal_attn": network.use_causal_attn, "layers": type(network.transformer_layers).__name__,
        "similarity": network.similarity_module.distance.value, "item_net": [type(b).__name__ for b in network.item_model.item_net_blocks],
    }  # fmt: skip


@torch.no_grad()
def probe(network: Any, ids: list[Any], window: int, probes: int, seed: int) -> tuple[list[list[Any]], list[list[float]]]:
    """Scores every item after random histories of every length up to the window, as `recommend` would: left-padded."""
    generator = np.random.default_rng(seed)
    lengths = np.arange(probes) % window + 1
    rows = torch.zeros(probes, window, dtype=torch.int64)
    for row, length in zip(rows, lengths, strict=True):
        row[-length:] = torch.from_numpy(generator.integers(1, len(ids) + 1, length))
    scores = network.eval().cpu()({"x": rows})[:, -1, -len(ids) :]
    histories = [[ids[item - 1] for item in row[row > 0].tolist()] for row in rows]
    return histories, scores.tolist()


if __name__ == "__main__":
    main()
