"""The order of pairs: a pure function of seed, epoch and sizes, the same for every split into processes."""

import itertools
from itertools import zip_longest

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from datasets import Dataset

from models import random_pairs
from simpo_trainer import SimPOConfig
from simpo_trainer.batches.batch import PairCollator
from simpo_trainer.batches.loader import pair_loader
from simpo_trainer.batches.order import Draw, DrawnPairs, PairBatchSampler

SIZES = pytest.mark.parametrize(
    ("num_pairs", "batch_size", "num_processes"), list(itertools.product((1, 7, 16, 23), (1, 3, 4), (1, 2, 5)))
)


def epoch_of(num_pairs: int, batch_size: int, num_processes: int, **options) -> list[list[list[Draw]]]:
    """Batches of all processes, by process."""
    samplers = [
        PairBatchSampler(
            num_pairs, batch_size=batch_size, num_processes=num_processes, process_index=index, **{"seed": 3, **options}
        )
        for index in range(num_processes)
    ]
    assert len({len(sampler) for sampler in samplers}) == 1
    batches = [list(sampler) for sampler in samplers]
    assert [len(mine) for mine in batches] == [len(sampler) for sampler in samplers]
    return batches


def order_of(sampler: PairBatchSampler) -> list[int]:
    return [draw.row for batch in sampler for draw in batch]


@SIZES
def test_every_pair_counts_exactly_once_in_an_epoch(num_pairs, batch_size, num_processes):
    draws = [draw for mine in epoch_of(num_pairs, batch_size, num_processes) for batch in mine for draw in batch]
    assert sorted(draw.row for draw in draws if draw.weight) == list(range(num_pairs))
    assert {draw.weight for draw in draws} <= {0.0, 1.0}


@SIZES
def test_processes_together_take_what_one_process_would(num_pairs, batch_size, num_processes):
    """Micro-step k of W processes with B pairs each is that of one process with W*B pairs, dealt out in turn."""
    split = epoch_of(num_pairs, batch_size, num_processes)
    (whole,) = epoch_of(num_pairs, batch_size * num_processes, 1)
    joined = [
        [draw for draws in zip_longest(*step) for draw in draws if draw and draw.weight]
        for step in zip(*split, strict=True)
    ]
    assert joined == whole


@SIZES
def test_processes_keep_in_step_with_even_shares(num_pairs, batch_size, num_processes):
    """No batch is empty or larger than asked for, and shares differ by one at most; filler stands alone, weight 0."""
    for step in zip(*epoch_of(num_pairs, batch_size, num_processes), strict=True):
        assert all(1 <= len(batch) <= batch_size for batch in step)
        shares = [sum(draw.weight for draw in batch) for batch in step]
        assert max(shares) - min(shares) <= 1
        assert all(len(batch) == 1 for batch, share in zip(step, shares, strict=True) if share == 0)


def test_a_process_without_pairs_gets_one_with_weight_0():
    processes = epoch_of(5, 1, 4, seed=None)
    assert [mine[1] for mine in processes] == [[Draw(4, 1.0)], [Draw(4, 0.0)], [Draw(4, 0.0)], [Draw(4, 0.0)]]


@SIZES
def test_drop_last_leaves_out_the_incomplete_step_and_nothing_else(num_pairs, batch_size, num_processes):
    kept = epoch_of(num_pairs, batch_size, num_processes, drop_last=True)
    every = epoch_of(num_pairs, batch_size, num_processes)
    steps = num_pairs // (batch_size * num_processes)
    assert kept == [mine[:steps] for mine in every]
    sampler = PairBatchSampler(num_pairs, batch_size=batch_size, num_processes=num_processes, drop_last=True)
    assert sampler.rows_per_epoch == steps * batch_size * num_processes


def test_order_is_a_function_of_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = PairBatchSampler(50, batch_size=4, seed=7)
    orders = []
    for epoch in (0, 1, 2):
        first.set_epoch(epoch)
        orders.append(order_of(first))
    torch.manual_seed(2)
    second = PairBatchSampler(50, batch_size=4, seed=7)
    for epoch in (2, 0, 1):
        second.set_epoch(epoch)
        assert order_of(second) == orders[epoch] == order_of(second)
    assert len({tuple(order) for order in orders}) == 3


def test_orders_of_seeds_and_epochs_do_not_coincide():
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        sampler = PairBatchSampler(50, batch_size=4, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(order_of(sampler))

    assert len({order(seed, epoch) for seed in range(5) for epoch in range(5)}) == 25


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    order_of(PairBatchSampler(50, batch_size=4, seed=7))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_order_is_the_data_set_s_own_in_every_epoch():
    sampler = PairBatchSampler(10, batch_size=3)
    for epoch in (0, 5):
        sampler.set_epoch(epoch)
        assert order_of(sampler) == list(range(10))


# ---- Loading ----


@pytest.fixture
def args(tmp_path):
    return SimPOConfig(output_dir=str(tmp_path)).settled()


def rows_of(loader) -> list[list[int]]:
    return [batch["row"].tolist() for batch in loader]


@pytest.mark.parametrize("as_list", [False, True])
def test_rows_carry_their_place_and_weight(as_list):
    """One by one or a batch at once; a row number that the data gives stays."""
    rows = random_pairs(4)
    source = DrawnPairs(rows if as_list else Dataset.from_list(rows))
    draws = [Draw(2, 1.0), Draw(0, 0.0)]
    expected = [
        {"row": 2, **rows[2], "index": 2, "weight": 1.0},
        {"row": 0, **rows[0], "index": 0, "weight": 0.0},
    ]
    assert source.__getitems__(draws) == [source[draw] for draw in draws] == expected

    numbered = [{**row, "row": 100 + place} for place, row in enumerate(rows)]
    source = DrawnPairs(numbered if as_list else Dataset.from_list(numbered))
    assert [row["row"] for row in source.__getitems__(draws)] == [source[draw]["row"] for draw in draws] == [102, 100]


def test_skipping_batches_replays_the_tail_of_the_epoch(args):
    """What a resumed run does: the sampler of the loader is told the epoch, and the first batches are left out."""
    Accelerator(cpu=True)
    sampler = PairBatchSampler(23, batch_size=4, seed=0)
    loader = pair_loader(Dataset.from_list(random_pairs(23)), sampler, PairCollator(), args)
    loader.set_epoch(1)
    whole = rows_of(loader)
    assert len(whole) == 6
    fresh = pair_loader(
        Dataset.from_list(random_pairs(23)), PairBatchSampler(23, batch_size=4, seed=0), PairCollator(), args
    )
    skipping = skip_first_batches(fresh, 2)
    skipping.batch_sampler.batch_sampler.set_epoch(1)
    assert rows_of(skipping) == whole[2:]


def test_loader_does_not_deal_the_batches_out_a_second_time(args):
    """The sampler knows its process; the loader of each yields all of the sampler's batches."""
    dataset = Dataset.from_list(random_pairs(10))
    for index in range(2):
        sampler = PairBatchSampler(10, batch_size=2, num_processes=2, process_index=index)
        loader = pair_loader(dataset, sampler, PairCollator(), args)
        assert len(loader) == len(sampler)
        assert rows_of(loader) == [[draw.row for draw in batch] for batch in sampler]


def test_worker_processes_load_the_same_batches(tmp_path):
    dataset = Dataset.from_list(random_pairs(11))
    loaded = []
    for workers in (0, 2):
        args = SimPOConfig(
            output_dir=str(tmp_path), dataloader_num_workers=workers, dataloader_persistent_workers=workers > 0
        ).settled()
        loader = pair_loader(dataset, PairBatchSampler(11, batch_size=3, seed=5), PairCollator(), args)
        epochs = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            epochs.append([{key: value.tolist() for key, value in batch.items()} for batch in loader])
        loaded.append(epochs)
    assert loaded[0] == loaded[1]
    assert loaded[0][0] != loaded[0][1]


# ---- Pairs of like length ----

LENGTHS = torch.randint(5, 500, (2000,), generator=torch.Generator().manual_seed(1)).tolist()


def grouped(num_pairs=2000, epoch=0, **options):
    sampler = PairBatchSampler(num_pairs, lengths=LENGTHS[:num_pairs], seed=3, **options)
    sampler.set_epoch(epoch)
    return [[draw.row for draw in batch if draw.weight] for batch in sampler]


def padding(batches):
    """Share of a padded batch that is padding."""
    longest = sum(len(batch) * max(LENGTHS[pair] for pair in batch) for batch in batches)
    return 1 - sum(LENGTHS[pair] for batch in batches for pair in batch) / longest


def test_an_epoch_visits_every_pair_once():
    taken = grouped(1990, batch_size=8)
    assert sorted(pair for batch in taken for pair in batch) == list(range(1990))
    assert len(taken[-1]) == 1990 % 8


def test_batches_are_of_like_length_and_alternate():
    plain = [[draw.row for draw in batch] for batch in PairBatchSampler(2000, batch_size=8, seed=3)]
    assert padding(plain) > 0.4
    batches = grouped(batch_size=8)
    assert padding(batches) < 0.02
    means = [sum(LENGTHS[pair] for pair in batch) / 8 for batch in batches]
    rises = sum(first < second for first, second in zip(means, means[1:], strict=False))
    assert 0.4 < rises / len(means) < 0.6  # not from long to short
    assert grouped(batch_size=8) == batches != grouped(batch_size=8, epoch=1)


def test_the_pairs_of_a_global_batch_do_not_depend_on_its_split():
    def steps(batch_size, accumulation, processes=1):
        parts = [
            grouped(
                1999, batch_size=batch_size, accumulation=accumulation, num_processes=processes, process_index=index
            )
            for index in range(processes)
        ]
        joined = [[pair for batch in step for pair in batch] for step in zip(*parts, strict=True)]
        return [
            sorted(pair for batch in joined[start : start + accumulation] for pair in batch)
            for start in range(0, len(joined), accumulation)
        ]

    whole = steps(16, 1)
    assert steps(4, 4) == steps(1, 16) == steps(4, 2, processes=2) == steps(2, 2, processes=4) == whole


def test_a_large_global_batch_stays_random():
    """Beyond the pairs that are grouped, only the order inside a global batch goes by length."""
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(3 * 1_000_003)).tolist()
    batches = grouped(batch_size=8, accumulation=80)
    starts = {frozenset(order[start : start + 640]) for start in (0, 640, 1280)}
    steps = [frozenset(pair for batch in batches[start : start + 80] for pair in batch) for start in (0, 80, 160)]
    assert set(steps) == starts
    assert padding(batches) < 0.02


def test_processes_get_like_lengths():
    shares = [grouped(batch_size=4, num_processes=4, process_index=index) for index in range(4)]
    for step in zip(*shares, strict=True):
        longest = [max(LENGTHS[pair] for pair in batch) for batch in step]
        assert max(longest) - min(longest) <= 40


def test_an_evaluation_begins_with_its_longest_pairs():
    batches = [[draw.row for draw in batch] for batch in PairBatchSampler(50, batch_size=4, lengths=LENGTHS[:50])]
    lengths = [LENGTHS[pair] for batch in batches for pair in batch]
    assert lengths == sorted(LENGTHS[:50], reverse=True)
