import pytest
import torch
from techniques_small import TRANSFORMER
from trainers_small import CPU, random_batches, small, small_state

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.metrics import cost
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Masking
from scrimp_trainers.techniques.masking import count_kept, draw_kept, mean_share
from scrimp_trainers.training import expected_cost
from scrimp_trainers.training.loop import read_losses, train

V2 = Masking(ratio=0.3, spread=0.2)


def drawn(settings=V2, step_seed=0, count=8, rank_slice=None, tokens=256):
    generator = torch.Generator().manual_seed(7)
    rank_slice = rank_slice or slice(0, count)
    return draw_kept(settings, tokens, generator, global_batch=count, rank_slice=rank_slice, step_seed=step_seed)


def test_each_image_keeps_tokens_of_its_own_and_none_twice():
    kept = drawn()
    assert all(len(set(row.tolist())) == kept.shape[1] for row in kept)
    assert len({tuple(sorted(row.tolist())) for row in kept}) == len(kept)
    assert kept.min() >= 0
    assert kept.max() < 256


def test_every_token_is_kept_equally_often():
    kept = drawn(Masking(ratio=0.25), count=4000, tokens=16)
    counts = torch.bincount(kept.flatten(), minlength=16) / 4000
    assert kept.shape[1] == 12
    assert (counts - 0.75).abs().max() < 5 * (0.75 * 0.25 / 4000) ** 0.5


def test_a_steps_share_is_drawn_between_both_ends_and_a_fixed_one_is_fixed():
    shares = [1 - drawn(step_seed=seed_of("mask", 0, step)).shape[1] / 256 for step in range(200)]
    assert 0.3 <= min(shares) < 0.32
    assert 0.48 < max(shares) <= 0.5 + 1 / 256
    assert sum(shares) / 200 == pytest.approx(mean_share(V2), abs=0.02)
    assert {drawn(Masking(ratio=0.3), step).shape[1] for step in range(20)} == {179}  # of 256, as MDT floors it


def test_a_rank_draws_its_rows_of_the_whole_batch():
    whole = drawn()
    assert torch.equal(torch.cat([drawn(rank_slice=slice(0, 4)), drawn(rank_slice=slice(4, 8))]), whole)


def test_some_token_is_always_left():
    assert count_kept(4, 0.99) == 1


def test_the_loss_of_a_step_is_the_sum_of_both_passes():
    """A new network estimates nothing in either pass, so that the sum is twice the loss of one."""
    plain = small(training__kimg=0.008).replace(TRANSFORMER)
    masked = plain.replace({"masking.ratio": 0.3})
    one, both = (read_losses(list(train(r, small_state(r), random_batches(8), device=CPU))) for r in (plain, masked))
    assert both == pytest.approx([2 * loss for loss in one])


def test_a_step_costs_both_passes():
    recipe = small().replace(TRANSFORMER | {"masking.ratio": 0.3, "masking.spread": 0.2})
    network = small_state(recipe).network
    dense, sparse, _ = expected_cost.network_flops(recipe, network)
    both, sparse_both = expected_cost.step_flops(recipe, network, dense, sparse)
    nine = Conditions(kept=torch.arange(9)[None])  # of 16 tokens, at a share of 0.4
    assert both == sparse_both == dense + cost.forward_flops(network, torch.zeros(1, 1, 8, 8), torch.zeros(1), nine)
    assert expected_cost.step_flops(recipe.replace({"masking.ratio": 0.0}), network, dense, sparse) == (dense, sparse)

    sparse_recipe = recipe.replace({"sparsity.method": "static", "sparsity.level": 0.5})
    dense, sparse, _ = expected_cost.network_flops(sparse_recipe, network)
    _, sparse_both = expected_cost.step_flops(sparse_recipe, network, dense, sparse)
    assert sparse < 0.6 * dense
    assert sparse_both < 0.6 * both


def test_other_networks_are_refused():
    with pytest.raises(UserError, match=r"masking needs tokens that can be hidden; use network\.kind mdt, or turn"):
        Recipe().replace({"masking.ratio": 0.3})


def test_a_mask_that_may_hide_all_is_refused():
    with pytest.raises(UserError, match=r"ratio 0\.6 and spread 0\.4 may hide all tokens; keep them below 1"):
        Recipe().replace(TRANSFORMER | {"masking.ratio": 0.6, "masking.spread": 0.4})
