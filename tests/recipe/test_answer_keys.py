"""The sections of a recipe for answers: seeds, defaults, and what is wrong with them."""

import pytest

from simpo_trainer import SimPOError
from simpo_trainer.recipe.answer_keys import AnnotateSettings, GenerateSettings, read_section


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ({}, [13, 21, 42, 79, 100]),
        ({"num_answers": 2}, [13, 21]),
        ({"num_answers": 7}, [13, 21, 42, 79, 100, 114, 122]),
        ({"num_answers": 11}, [13, 21, 42, 79, 100, 114, 122, 143, 180, 201, 215]),
        ({"seeds": [5]}, [5]),
        # 1 + 101 is there already.
        ({"seeds": [1, 102], "num_answers": 5}, [1, 102, 103, 203, 204]),
    ],
)
def test_every_answer_has_a_seed_of_its_own(given, used):
    assert read_section(GenerateSettings, given).used_seeds == used
    assert len(set(used)) == len(used)


def test_words_replace_the_values_of_the_section():
    settings = read_section(GenerateSettings, {"temperature": 0.5, "top_p": 0.9}, {"temperature": "1"})
    assert (settings.temperature, settings.top_p, settings.max_new_tokens) == (1.0, 0.9, 4096)


def test_all_problems_are_told_at_once():
    with pytest.raises(SimPOError) as caught:
        read_section(AnnotateSettings, {"paris": "all", "least_gap": "much"}, {"batch_size": "many"})
    for text in ("unknown key paris. Did you mean pairs?", "least_gap is 'much'", "batch_size is 'many'"):
        assert text in str(caught.value)
