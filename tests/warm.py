"""Trained-looking rankers on small examples, and transfers between them: for the tests of the warm start."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

import models
from models.losses import ranker_loss
from tests import small
from trainer.data import Encoder, take
from trainer.fit.train import shape_of
from trainer.warm_start import Rules, Side, apply, plan

LATE = 100 * small.HOUR
ARCHITECTURES = ["sasrec", "hstu"]


def fresh(encoder, seed=1, *, like=None, options=None, **overrides):
    """A ranker as the main job initialises it; `like` keeps the norms of another one, as a warm start does."""
    torch.manual_seed(seed)
    shape = shape_of(small.model_config(**overrides), encoder.inputs, encoder.vocabularies)
    if like is not None:
        scale = 1 if like.shape.norm == "layer" else like.shape.dim / shape.dim
        shape = dataclasses.replace(shape, norm_eps=like.shape.norm_eps * scale)
    return models.build(dataclasses.replace(shape, **(options or {}))).eval()


def build(encoder, seed=0, **settings):
    """A ranker whose every parameter is random: trained weights are not at their special initial values."""
    ranker = fresh(encoder, seed, **settings)
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for name, axes in ranker.axes().items():
            if axes[0].startswith("vocab:"):
                ranker.state_dict()[name][0] = 0
    return ranker


def sides(source_encoder, source, target_encoder, target, **kwargs):
    return Side.of(source, source_encoder.vocabularies, **kwargs), Side.of(target, target_encoder.vocabularies)


def transfer(source_encoder, source, target_encoder, target, **rules):
    """Plans, applies and loads; returns (plan, sides)."""
    both = sides(source_encoder, source, target_encoder, target)
    the_plan = plan(*both, Rules(**rules))
    target.load_state_dict(apply(the_plan, *both, source.state_dict(), target.state_dict()))
    return the_plan, both


def batch_of(encoder, **tables):
    examples, tail = small.tables(**tables)
    shard = encoder.encode(examples, tail, LATE)
    return take(shard, np.arange(shard.units))


def outputs(encoder, ranker, **tables):
    """Outputs by row of the examples; also those of the auxiliary head, if there is one."""
    batch = batch_of(encoder, **tables)
    with torch.inference_mode():
        scores = ranker(batch)
        both = scores.output_NO if scores.auxiliary_NO is None else torch.cat([scores.output_NO, scores.auxiliary_NO], 1)
        return both[torch.from_numpy(np.argsort(batch.row_N.numpy()))]


def reordered(encoder, add=(), drop=(), names=("item", "author", "tab")):
    """The same vocabularies in another order, with items added and dropped."""
    vocabularies = dict(encoder.vocabularies)
    for name in names:
        keys = vocabularies[name].keys.to_pylist()
        if name == "item":
            keys = [key for key in keys if key not in drop] + list(add)
        vocabularies[name] = small.vocabulary(name, np.random.default_rng(5).permutation(keys).tolist())
    return Encoder(encoder.inputs, vocabularies)


def train_steps(encoder, ranker, steps=2, lr=1e-2):
    batch = batch_of(encoder)
    optimizer = torch.optim.Adam(ranker.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ranker_loss(ranker(batch), batch, ranker.shape).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def random_moments(ranker, step=5000.0, seed=0):
    """Optimizer state as a bundle holds it: ``<parameter>/<state>``."""
    generator = torch.Generator().manual_seed(seed)
    moments = {}
    for name, parameter in ranker.named_parameters():
        moments[f"{name}/exp_avg"] = torch.randn(parameter.shape, generator=generator)
        moments[f"{name}/exp_avg_sq"] = torch.rand(parameter.shape, generator=generator)
        moments[f"{name}/step"] = torch.tensor(step)
    return moments
