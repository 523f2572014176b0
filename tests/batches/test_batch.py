"""Batches by hand, and what must not matter to the scores of their answers."""

import pytest
import torch

from batches import left_padded, widened
from models import BOS, EOS, as_exact_as_can_be, random_pairs, tiny_architecture
from simpo_trainer.batches.batch import NOT_SCORED, PairCollator, count_tokens
from simpo_trainer.model.scoring import add_scoring_forward, score_answers

PAIRS = [
    {"prompt_ids": [1, 5, 6], "chosen_ids": [7, 2], "rejected_ids": [8, 9, 2], "row": 40},
    {"prompt_ids": [1], "chosen_ids": [3, 4, 2], "rejected_ids": [2], "row": 12, "weight": 0.0},
]
N = NOT_SCORED


def test_fields_by_hand():
    """Rows are prompt + answer without its last token, chosen rows first; the token before an answer predicts it."""
    batch = PairCollator(pad_token_id=0)(PAIRS)
    expected = {
        "input_ids": [[1, 5, 6, 7, 0], [1, 3, 4, 0, 0], [1, 5, 6, 8, 9], [1, 0, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
        "position_ids": [[0, 1, 2, 3, 0], [0, 1, 2, 0, 0], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]],
        "shift_labels": [[N, N, 7, 2, N], [3, 4, 2, N, N], [N, N, 8, 9, 2], [2, N, N, N, N]],
        "response_index": [[0, 0, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 2, 2, 2], [3, 0, 0, 0, 0]],
        "num_responses": 4,
        "chosen": [0, 1],
        "rejected": [2, 3],
        "pair_weight": [1.0, 0.0],
        "pair_tokens": [3 + 2 + 3 + 3, 1 + 3 + 1 + 1],
        "row": [40, 12],
        "index": [-1, -1],
    }
    assert {key: value.tolist() for key, value in batch.items()} == expected


@pytest.mark.parametrize("seed", range(5))
def test_scored_positions_predict_exactly_the_answer_tokens(seed):
    """Read back from the batch: each answer's labels are its tokens, each behind the tokens that precede it."""
    pairs = random_pairs(4, seed)
    batch = PairCollator()(pairs)
    answers = [pair["chosen_ids"] for pair in pairs] + [pair["rejected_ids"] for pair in pairs]
    for number, answer in enumerate(answers):
        prompt = pairs[number % 4]["prompt_ids"]
        mine = (batch["response_index"] == number) & (batch["shift_labels"] != NOT_SCORED)
        assert batch["shift_labels"][mine].tolist() == answer
        for t, (row, column) in enumerate(mine.nonzero().tolist()):
            seen = batch["input_ids"][row, : column + 1][batch["attention_mask"][row, : column + 1].bool()]
            assert seen.tolist() == prompt + answer[:t]


def test_margin_is_there_where_the_data_gives_one():
    assert "margin" not in PairCollator()(PAIRS)
    batch = PairCollator()([{**pair, "margin": margin} for pair, margin in zip(PAIRS, [0.25, 1], strict=True)])
    assert batch["margin"].tolist() == [0.25, 1.0]


def test_rows_and_weights_have_defaults():
    batch = PairCollator()([{key: PAIRS[0][key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")}])
    assert batch["row"].tolist() == [-1] and batch["pair_weight"].tolist() == [1.0]


def test_count_tokens():
    """Pairs, tokens, and tokens of chosen answers; the second pair is filler and counts nothing."""
    assert count_tokens(PairCollator()(PAIRS)).tolist() == [1, 11, 2]
    real = [{**pair, "weight": 1.0} for pair in PAIRS]
    assert count_tokens(PairCollator()(real)).tolist() == [2, 11 + 6, 2 + 3]
    assert count_tokens(widened(PairCollator()(real), 3)).tolist() == [2, 17, 5]


# ---- Invariances of the scores ----


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request):
    """Rotary positions, learned ones, sliding windows."""
    model = as_exact_as_can_be(tiny_architecture(request.param)).eval()
    add_scoring_forward(model)
    return model


def scores_and_gradients(model, batch) -> dict[str, torch.Tensor]:
    """Average log-probabilities of all answers, and the gradients of a sum of them with uneven factors."""
    model.zero_grad()
    averages = score_answers(model, batch).average
    (averages * torch.arange(1, len(averages) + 1)).sum().backward()
    return {"averages": averages.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal up to float32: norm layers compute in it even inside a float64 model."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad_id", [0, 50, EOS])
def test_more_padding_changes_nothing(model, pad_id):
    batch = PairCollator()(random_pairs(3))
    assert_same(
        scores_and_gradients(model, widened(batch, 5, pad_id)),
        scores_and_gradients(model, batch),
    )


def test_left_padding_is_the_same_as_right_padding(model):
    batch = PairCollator()(random_pairs(3))
    assert not torch.equal(left_padded(batch)["input_ids"], batch["input_ids"])
    assert_same(scores_and_gradients(model, left_padded(batch)), scores_and_gradients(model, batch))


@pytest.mark.parametrize("place", ["start", "prompt", "answer", "end"])
def test_the_pad_id_may_be_any_token(model, place):
    """Padding is told by length: tokens that equal the pad token are seen, and scored, as all others."""
    pairs = random_pairs(3)
    first = pairs[0]
    pad_id = {"start": BOS, "prompt": first["prompt_ids"][1], "answer": first["chosen_ids"][0], "end": EOS}[place]
    assert_same(
        scores_and_gradients(model, PairCollator(pad_id)(pairs)),
        scores_and_gradients(model, PairCollator(0)(pairs)),
    )


def test_pairs_do_not_see_each_other(model):
    """In another order, or alone, each pair scores the same."""
    pairs = random_pairs(4)
    together = score_answers(model, PairCollator()(pairs)).average
    reverse = score_answers(model, PairCollator()(pairs[::-1])).average
    order = [3, 2, 1, 0, 7, 6, 5, 4]
    torch.testing.assert_close(reverse, together[order], rtol=1e-5, atol=1e-5)
    for number, pair in enumerate(pairs):
        alone = score_answers(model, PairCollator()([pair])).average
        torch.testing.assert_close(alone, together[[number, number + 4]], rtol=1e-5, atol=1e-5)


# ---- Several answers in a row ----

TWO = [
    {"prompt_ids": [1, 10, 11], "chosen_ids": [12, 2], "rejected_ids": [13, 14, 2]},
    {"prompt_ids": [1], "chosen_ids": [15, 16, 2], "rejected_ids": [2]},
]
_ = NOT_SCORED


def test_shared_prefix_by_hand():
    batch = PairCollator(pad_token_id=0, layout="shared_prefix")(TWO)
    expected = {
        # prompt, chosen, rejected; an answer begins with the prompt's last token and lacks its own
        "input_ids": [[1, 10, 11, 12, 11, 13, 14], [1, 15, 16, 1, 0, 0, 0]],
        "attention_mask": [[1] * 7, [1, 1, 1, 1, 0, 0, 0]],
        "position_ids": [[0, 1, 2, 3, 2, 3, 4], [0, 1, 2, 0, 0, 0, 0]],
        "shift_labels": [[_, _, 12, 2, 13, 14, 2], [15, 16, 2, 2, _, _, _]],
        "response_index": [[0, 0, 0, 0, 2, 2, 2], [1, 1, 1, 3, 0, 0, 0]],
        "prompt_index": [[0] * 7, [1, 1, 1, 1, -1, -1, -1]],
        "branch": [[0, 0, 1, 1, 3, 3, 3], [2, 2, 2, 4, 0, 0, 0]],
        "chosen": [0, 1],
        "rejected": [2, 3],
        "num_responses": 4,
        "pair_tokens": [3 + 2 + 3 + 3, 1 + 3 + 1 + 1],
    }
    assert {key: batch[key].tolist() for key in expected} == expected


def test_packed_is_the_rows_of_shared_prefix_end_to_end():
    packed, shared = (PairCollator(layout=layout)(TWO) for layout in ("packed", "shared_prefix"))
    real = shared["attention_mask"].bool()
    for name in ("input_ids", "position_ids", "shift_labels", "response_index", "prompt_index", "branch"):
        assert packed[name].shape == (1, real.sum())
        assert packed[name][0].tolist() == shared[name][real].tolist()
    assert packed["attention_mask"].all()


@pytest.mark.parametrize("layout", ["shared_prefix", "packed"])
def test_every_layout_scores_the_same_tokens_of_the_same_answers(layout):
    pairs = random_pairs(7)
    expected, found = PairCollator()(pairs), PairCollator(layout=layout)(pairs)

    def scored(batch):
        mask = batch["shift_labels"] != NOT_SCORED
        tokens = zip(batch["response_index"][mask].tolist(), batch["shift_labels"][mask].tolist(), strict=True)
        return sorted(tokens, key=lambda token: token[0])

    assert scored(found) == scored(expected)
    assert count_tokens(found).tolist() == count_tokens(expected).tolist()
    real = int(found["attention_mask"].sum())
    assert real == sum(len(p["prompt_ids"]) - 1 + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in pairs)
