"""What every ranker must hold, whatever the batch: no leak, packing changes nothing, one term a feature."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ARCHITECTURES = ("sasrec", "hstu")
both = pytest.mark.parametrize("architecture", ARCHITECTURES)
few = settings(max_examples=25, deadline=None)


@st.composite
def layouts(draw):
    """Lengths of sequences, and sorted target positions in each; at least one target."""
    lengths = draw(st.lists(st.sampled_from([0, 0, 1, 2, 3, 7, 15, 16, 17, 20, 33, 40]), min_size=1, max_size=6))
    targets = [sorted(draw(st.lists(st.integers(0, length), max_size=4))) for length in lengths]
    if not any(targets):
        targets[-1] = [lengths[-1]]
    return lengths, targets, draw(st.integers(0, 1000))


def close(a, b, dtype):
    bound = 1e-10 if dtype == torch.float64 else 1e-5 * max(1.0, b.abs().max().item())
    assert a.shape == b.shape
    assert (a - b).abs().max().item() <= bound


def outputs(model, batch):
    with torch.no_grad():
        scores = model(batch)
    return scores.output_NO if scores.auxiliary_NO is None else torch.cat([scores.output_NO, scores.auxiliary_NO], 1)


def scrambled_tokens(batch, shape, changed_T, seed):
    """Replaces everything that is known of the tokens in `changed_T`."""
    other = torch.Generator().manual_seed(seed + 77)

    def redraw(value, high):
        return torch.randint(0, high, value.shape, generator=other)

    new = {
        "token_item_T": redraw(batch.token_item_T, 40),
        "token_item_features_TI": redraw(batch.token_item_features_TI, 9),
        "token_features_TK": redraw(batch.token_features_TK, 5),
        "token_action_TH": torch.rand(batch.token_action_TH.shape, generator=other),
        "token_action_known_TH": redraw(batch.token_action_known_TH, 2).bool(),
        "token_time_T": redraw(batch.token_time_T, 10) * 10_000_000_000 - 1,
    }
    mixed = {}
    for name, value in new.items():
        mask = changed_T if value.dim() == 1 else changed_T[:, None]
        mixed[name] = torch.where(mask, value, getattr(batch, name))
    return dataclasses.replace(batch, **mixed)


@both
@few
@given(layout=layouts(), which=st.integers(0, 100))
def test_tokens_that_are_not_available_never_reach_a_target(kit, architecture, layout, which):
    lengths, targets, seed = layout
    shape = kit.shape(architecture)
    batch = kit.batch(shape, lengths, targets, seed)
    target = which % batch.targets
    sequence, position = int(batch.target_sequence_N[target]), int(batch.target_position_N[target])
    visible_T = torch.zeros(batch.tokens, dtype=torch.bool)
    first = int(batch.offsets_S1[sequence])
    visible_T[first : first + position] = True
    model = kit.model(shape)
    changed = scrambled_tokens(batch, shape, ~visible_T, seed)
    assert torch.equal(outputs(model, changed)[target], outputs(model, batch)[target])
    assert torch.equal(model.user_vectors(changed)[target], model.user_vectors(batch)[target])


@both
@few
@given(layout=layouts(), which=st.integers(0, 100))
def test_other_targets_never_reach_a_target(kit, architecture, layout, which):
    lengths, targets, seed = layout
    shape = kit.shape(architecture)
    batch, other = kit.batch(shape, lengths, targets, seed), kit.batch(shape, lengths, targets, seed + 5)
    target = which % batch.targets
    mine_N = torch.arange(batch.targets) == target
    mixed = {}
    for field in dataclasses.fields(batch):
        value, redrawn = getattr(batch, field.name), getattr(other, field.name)
        per_target = field.name.split("_")[-1].startswith("N") and value is not None
        if per_target and field.name not in ("target_sequence_N", "target_position_N"):
            mixed[field.name] = torch.where(mine_N if value.dim() == 1 else mine_N[:, None], value, redrawn)
    model = kit.model(shape)
    assert torch.equal(outputs(model, dataclasses.replace(batch, **mixed))[target], outputs(model, batch)[target])


@both
def test_available_tokens_do_reach_a_target(kit, architecture):
    shape = kit.shape(architecture)
    batch = kit.batch(shape, [6, 5], [[3], [5]])
    model = kit.model(shape)
    before = outputs(model, batch)
    for token in range(batch.tokens):
        after = outputs(model, scrambled_tokens(batch, shape, torch.arange(batch.tokens) == token, 3))
        reached = [bool((after[n] != before[n]).any()) for n in range(2)]
        assert reached == [token < 3, token >= 6]


@both
@few
@given(layout=layouts(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_packed_equals_one_at_a_time(kit, architecture, layout, dtype):
    lengths, targets, seed = layout
    shape = kit.shape(architecture)
    batch = kit.batch(shape, lengths, targets, seed)
    model = kit.model(shape, dtype=dtype)
    alone = [kit.one_sequence(batch, s) for s in range(batch.sequences)]
    close(outputs(model, batch), torch.cat([outputs(model, one) for one in alone]), dtype)
    with torch.no_grad():
        close(model.states(batch), torch.cat([model.states(one) for one in alone]), dtype)
        close(model.user_vectors(batch), torch.cat([model.user_vectors(one) for one in alone]), dtype)


@both
@few
@given(layout=layouts(), seed=st.integers(0, 100))
def test_permuting_targets_of_a_sequence_permutes_outputs(kit, architecture, layout, seed):
    lengths, targets, batch_seed = layout
    shape = kit.shape(architecture)
    batch = kit.batch(shape, lengths, targets, batch_seed)
    shuffled = torch.randperm(batch.targets, generator=torch.Generator().manual_seed(seed))
    order = shuffled[batch.target_sequence_N[shuffled].argsort(stable=True)]
    model = kit.model(shape, dtype=torch.float64)
    close(outputs(model, kit.pick(batch, order)), outputs(model, batch)[order], torch.float64)


@both
@few
@given(layout=layouts())
def test_a_target_alone_scores_as_in_company(kit, architecture, layout):
    lengths, targets, seed = layout
    shape = kit.shape(architecture)
    batch = kit.batch(shape, lengths, targets, seed)
    model = kit.model(shape, dtype=torch.float64)
    alone = [outputs(model, kit.pick(batch, torch.tensor([n]))) for n in range(batch.targets)]
    close(torch.cat(alone), outputs(model, batch), torch.float64)


@both
def test_cutting_tokens_behind_a_target_changes_nothing(kit, architecture):
    shape = kit.shape(architecture)
    batch = kit.batch(shape, [30], [[7]])
    cut = kit.one_sequence(dataclasses.replace(batch, offsets_S1=torch.tensor([0, 7, 30])), 0)
    model = kit.model(shape, dtype=torch.float64)
    close(outputs(model, cut), outputs(model, batch), torch.float64)


@both
def test_user_vectors_are_the_states_at_the_target_positions(kit, architecture):
    shape = kit.shape(architecture)
    batch = kit.batch(shape, [4, 0, 9], [[0, 4], [0], [2, 2, 9]])
    model = kit.model(shape, dtype=torch.float64)
    rows = torch.tensor([0, 4, 5, 8, 8, 15])  # BOS rows stand at 0, 5 and 6
    with torch.no_grad():
        close(model.user_vectors(batch), model.states(batch)[rows], torch.float64)


def test_the_bilinear_term_of_sasrec_is_the_product_of_its_vectors(kit):
    shape = kit.shape("sasrec")
    batch = kit.batch(shape, [5, 3], [[1, 5], [3]])
    model = kit.model(shape, dtype=torch.float64)
    with torch.no_grad():
        with_term = outputs(model, batch)
        product = (model.user_vectors(batch) * model.item_vectors(batch.target_item_N, batch.target_item_features_NI)).sum(1)
        scale = model.bilinear.scale.clone()
        model.bilinear.scale.zero_()
        close(with_term - outputs(model, batch), product[:, None] * scale, torch.float64)


def test_the_auxiliary_head_of_hstu_is_the_product_of_its_vectors(kit):
    shape = kit.shape("hstu")
    batch = kit.batch(shape, [5, 3], [[1, 5], [3]])
    model = kit.model(shape, dtype=torch.float64)
    with torch.no_grad():
        product = (model.user_vectors(batch) * model.item_vectors(batch.target_item_N, batch.target_item_features_NI)).sum(1)
        close(model(batch).auxiliary_NO, product[:, None] * model.auxiliary.scale + model.auxiliary.bias, torch.float64)


def test_hstu_reads_its_target_before_the_last_layer(kit):
    """Target-aware: the weight of a history token depends on the target, so two items differ by more than a bilinear term."""
    shape = kit.shape("hstu")
    batch = kit.batch(shape, [8], [[8]])
    model = kit.model(shape)
    seen = []
    model.context.user.register_forward_hook(lambda module, args, out: seen.append(args[0].clone()))
    outputs(model, batch)
    outputs(model, dataclasses.replace(batch, target_item_N=batch.target_item_N % 38 + 1))
    assert not torch.equal(seen[0], seen[1])


@both
@pytest.mark.parametrize(
    ("lengths", "targets"),
    [([0], [[0]]), ([0, 0], [[0], [0, 0]]), ([3], [[]]), ([0], [[]]), ([1, 0, 2], [[], [0], []]), ([200, 1], [[200], [0]])],
)
@pytest.mark.parametrize("bare", [False, True])
def test_odd_batches_work_forward_and_backward(kit, architecture, lengths, targets, bare):
    shape = kit.bare(architecture) if bare else kit.shape(architecture)
    batch = kit.batch(shape, lengths, targets)
    model = kit.model(shape).train()
    scores = model(batch)
    assert scores.output_NO.shape == (batch.targets, len(shape.outputs))
    scores.output_NO.sum().backward()
    assert model.states(batch).shape == (batch.tokens + batch.sequences, shape.dim)
    assert model.user_vectors(batch).shape == (batch.targets, shape.dim)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@both
def test_values_under_a_missing_mask_are_not_read(kit, architecture):
    shape = kit.shape(architecture)
    batch = kit.batch(shape, [5, 2], [[0, 3], [2]])
    poisoned = dataclasses.replace(batch, numeric_NF=torch.where(batch.present_NF, batch.numeric_NF, torch.nan))
    model = kit.model(shape)
    assert torch.equal(outputs(model, poisoned), outputs(model, batch))


@both
def test_bf16_autocast_stays_close_to_fp32(kit, architecture):
    shape = kit.shape(architecture)
    batch = kit.batch(shape, [5, 0, 40], [[0, 3], [0], [40]])
    model = kit.model(shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(batch)
        assert scores.output_NO.dtype == torch.float32
        scores.output_NO.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    exact = outputs(model, batch)[:, : len(shape.outputs)]
    assert (scores.output_NO - exact).abs().max() < 0.05 * exact.abs().max()


def test_outputs_are_computed_in_fp32_under_autocast(kit):
    shape = kit.bare()
    model, seen = kit.model(shape), []
    model.bilinear.scale.data.zero_()
    model.context.norm.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(kit.batch(shape, [5, 40], [[0, 3], [40]]))
    exact = seen[0].double() @ model.context.output.double().T + model.context.bias.double()
    assert (scores.output_NO - exact).abs().max() < 1e-5


@both
def test_feature_dropout_replaces_whole_features_in_training_only(kit, architecture):
    shape = kit.shape(architecture, feature_dropout=0.999, history_actions=())
    batch = kit.batch(shape, [5, 2], [[0, 3], [2]])
    model = kit.model(shape)
    plain = kit.model(dataclasses.replace(shape, feature_dropout=0.0))
    assert torch.equal(outputs(model, batch), outputs(plain, batch))
    hidden = dataclasses.replace(batch, categorical_NC=torch.ones_like(batch.categorical_NC), present_NF=torch.zeros_like(batch.present_NF))
    torch.manual_seed(0)  # at this rate every feature of these three targets is dropped
    assert torch.equal(outputs(model.train(), batch), outputs(plain, hidden))
    assert not torch.equal(outputs(plain, hidden), outputs(plain, batch))


@both
def test_the_same_seed_gives_the_same_ranker_and_the_same_training_step(kit, architecture):
    shape = kit.shape(architecture, dropout=0.2, feature_dropout=0.1)
    batch = kit.batch(shape, [5, 2, 30], [[0, 3], [2], [1, 30]])
    results = []
    for _ in range(2):
        model = kit.model(shape, seed=3).train()
        torch.manual_seed(9)
        model(batch).output_NO.sum().backward()
        results.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
