"""JSON files whose values differ in type: each keeps its own, wherever it stands; none is turned into text."""

import datasets
import pytest
from datasets.packaged_modules.json.json import JsonConfig

from pair_files import load, write
from simpo_trainer.data.load import DataConfig, load_preferences
from simpo_trainer.data.sources import Source, load_splits, readable_rows
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences
from toy import toy_tokenizer

LATE = 150  # the row that differs, some blocks behind the first
OTHERS = [5, 0.5, True, {"a": 1}, ["x"], [{"role": "assistant", "content": "x"}]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 2 kB in place of 10 MB."""
    check = JsonConfig.__post_init__

    def shrink(config):
        check(config)
        config.chunksize = 2_000 if config.chunksize == 10 << 20 else config.chunksize

    monkeypatch.setattr(JsonConfig, "__post_init__", shrink)


def texts(count=200):
    return [{"prompt": f"What is {i}?", "chosen": f"The sum is {i}.", "rejected": "No."} for i in range(count)]


def chats(count=200):
    said = [{key: [{"role": "assistant", "content": text}] for key, text in row.items()} for row in texts(count)]
    return [row | {"prompt": [{"role": "user", "content": row["prompt"][0]["content"]}]} for row in said]


def differing(column, value):
    rows = texts()
    rows[LATE][column] = value
    return rows


def stream_error(source, **config):
    rows = load_preferences(DataConfig(str(source), streaming=True, **config))[0]
    with pytest.raises(SimPOError, match="The types of a stream are those of the first rows") as caught:
        list(readable_rows(rows, "stream"))
    return str(caught.value)


# --- One file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("value", OTHERS, ids=repr)
def test_one_value_of_another_type_leaves_all_others_as_they_are(tmp_path, small_blocks, value, suffix):
    rows = differing("chosen", value)
    long = load_splits(Source(write(tmp_path / f"long{suffix}", rows)))["train"]
    assert long.to_list() == rows
    short = load_splits(Source(write(tmp_path / f"short{suffix}", rows[LATE - 2 : LATE + 2])))["train"]
    assert long.features == short.features


@pytest.mark.parametrize("column", ["prompt", "rejected"])
def test_other_columns_keep_their_texts_too(tmp_path, small_blocks, column):
    rows = differing(column, 5)
    assert load_splits(Source(write(tmp_path / "pairs.jsonl", rows)))["train"].to_list() == rows


def test_several_columns_that_differ_in_several_places(tmp_path, small_blocks):
    rows = differing("chosen", 5)
    rows[100]["prompt"] = {"a": 1}
    rows[180]["rejected"] = ["x"]
    assert load_splits(Source(write(tmp_path / "pairs.jsonl", rows)))["train"].to_list() == rows


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("value", [5, {"a": 1}, True], ids=repr)
def test_value_inside_of_a_message(tmp_path, small_blocks, value, suffix):
    rows = chats()
    rows[LATE]["chosen"][0]["content"] = value
    path = write(tmp_path / f"pairs{suffix}", rows)
    assert load_splits(Source(path))["train"].to_list() == rows
    if suffix == ".jsonl":
        assert f"'chosen.content' is {value!r} in rows further on and text in the first" in stream_error(path)


@pytest.mark.slow
def test_text_among_conversations(tmp_path, small_blocks):
    rows = chats()
    rows[LATE]["chosen"] = "text"
    path = write(tmp_path / "pairs.jsonl", rows)
    assert load_splits(Source(path))["train"].to_list() == rows
    assert "'chosen' is 'text' in rows further on and a list in the first" in stream_error(path)


def test_answer_among_ranked_ones(tmp_path, small_blocks):
    rows = [{"prompt": f"q{i}", "responses": [f"a {i}", f"b {i}"], "scores": [1, 0]} for i in range(200)]
    rows[LATE]["responses"][1] = 5
    assert load(write(tmp_path / "pairs.jsonl", rows))[0].to_list() == rows


def test_renamed_columns(tmp_path, small_blocks):
    rows = differing("chosen", 5)
    renamed = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in rows]
    path = write(tmp_path / "pairs.jsonl", renamed)
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert load(path, columns=columns)[0].to_list() == rows
    assert "'good' is 5" in stream_error(path, columns=columns)


def test_null_is_of_every_type(tmp_path, small_blocks):
    rows = [row | {"chosen": None} if i >= LATE else row for i, row in enumerate(texts(400))]  # whole blocks, too
    path = write(tmp_path / "pairs.jsonl", rows)
    for streaming in (False, True):
        found = load_splits(Source(path), streaming=streaming)["train"]
        assert list(found) == rows
        assert found.features["chosen"].dtype == "string"


def test_texts_that_all_look_like_dates_in_a_later_block(tmp_path, small_blocks):
    rows = [*texts(100), *[{"prompt": "When?", "chosen": "2020-01-31", "rejected": "2020-02-01T10:00:00Z"}] * 100]
    path = write(tmp_path / "pairs.jsonl", rows)
    found = load_splits(Source(path))["train"]
    assert found.to_list() == rows
    assert found.features["chosen"].dtype == "string"
    assert "'chosen' is only dates in rows further on and text in the first" in stream_error(path)


def test_row_is_left_out_and_counted(tmp_path, small_blocks):
    train, _ = load(write(tmp_path / "pairs.jsonl", differing("chosen", 5)))
    tokens, report = tokenize_preferences(
        train, toy_tokenizer(), RowSettings(max_length=64, max_prompt_length=32, overlong="drop")
    )
    assert len(tokens) == 199
    assert (report.dropped["wrong_type"].count, report.dropped["wrong_type"].first_row) == (1, LATE)


@pytest.mark.slow
def test_blocks_as_large_as_they_are(tmp_path):
    rows = texts(150_000)
    rows[140_000]["chosen"] = 5
    path = write(tmp_path / "pairs.jsonl", rows)
    assert (tmp_path / "pairs.jsonl").stat().st_size > 10 << 20
    assert load(path)[0].to_list() == rows


# --- Several files ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("is_all", [False, True])
@pytest.mark.parametrize("value", OTHERS, ids=repr)
def test_second_file_differs(tmp_path, value, is_all, suffix):
    first, second = texts(10), texts(10)
    for row in second if is_all else second[3:4]:
        row["chosen"] = value
    files = [write(tmp_path / "set" / f"train-{i}{suffix}", rows) for i, rows in enumerate((first, second))]
    assert load_splits(Source(str(tmp_path / "set")))["train"].to_list() == first + second
    assert load_splits(Source("json", data_files=files))["train"].to_list() == first + second
    assert f"'chosen' is {value!r} in rows further on and text in the first" in stream_error(tmp_path / "set")


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_differs(tmp_path, split):
    rows = {"train": texts(10), "test": texts(10), split: differing("chosen", 5)}
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", rows[name])
    train, test = load(tmp_path)
    assert (train.to_list(), test.to_list()) == (rows["train"], rows["test"])


def test_types_that_the_card_of_a_dataset_states_are_followed(tmp_path):
    stated = "".join(f"  - {{name: {name}, dtype: string}}\n" for name in ("id", "prompt", "chosen", "rejected"))
    (tmp_path / "README.md").write_text(f"---\ndataset_info:\n  features:\n{stated}---\n")
    rows = [{"id": i, **row} for i, row in enumerate(texts(4))]
    write(tmp_path / "train.jsonl", rows)
    read = load_splits(Source(str(tmp_path)), streaming=True)["train"]
    assert list(read) == [row | {"id": str(row["id"])} for row in rows]
    write(tmp_path / "train.jsonl", [row | {"chosen": 5} if row["id"] == 2 else row for row in rows])
    assert [row["chosen"] for row in load_splits(Source(str(tmp_path)))["train"]] == [
        5 if row["id"] == 2 else row["chosen"] for row in rows
    ]


# --- Streams, and what was read before
# ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", OTHERS, ids=repr)
def test_stream_says_what_differs(tmp_path, small_blocks, value):
    error = stream_error(write(tmp_path / "pairs.jsonl", differing("chosen", value)))
    assert f"'chosen' is {value!r} in rows further on and text in the first" in error
    assert "Remove streaming" in error


def test_long_value_is_shown_in_part(tmp_path, small_blocks):
    error = stream_error(write(tmp_path / "pairs.jsonl", differing("chosen", ["x" * 1_000])))
    assert "'chosen' is ['" + "x" * 55 + "... in rows" in error


@pytest.mark.parametrize("value", OTHERS, ids=repr)
def test_stream_of_an_array_keeps_types(tmp_path, value):
    rows = differing("chosen", value)
    stream = load_splits(Source(write(tmp_path / "pairs.json", rows)), streaming=True)["train"]
    assert list(stream) == list(stream) == rows


def test_tables_that_other_programs_left_in_the_cache_are_not_used(tmp_path, small_blocks):
    rows = differing("chosen", 5)
    path = write(tmp_path / "pairs.jsonl", rows)
    other = datasets.load_dataset("json", data_files=path)["train"]
    assert other[LATE]["chosen"] == "5", "the premise: the loader turns types into others"
    assert load_splits(Source("json", data_files=path))["train"].to_list() == rows
    assert load_splits(Source(path))["train"].to_list() == rows


def test_margin_that_is_text_is_read_as_its_number(tmp_path, small_blocks):
    rows = [row | {"margin": 0.5} for row in texts()]
    rows[LATE]["margin"] = "1.5"
    path = write(tmp_path / "pairs.jsonl", rows)
    for streaming in (False, True):
        assert list(load_splits(Source(path), streaming=streaming)["train"])[LATE]["margin"] == 1.5


def test_margin_that_is_no_number_is_not_made_one(tmp_path):
    rows = [row | {"margin": 0.5} for row in texts(10)]
    write(tmp_path / "train-0.jsonl", rows)
    write(tmp_path / "train-1.jsonl", [rows[0] | {"margin": True}])
    assert load(tmp_path)[0][-1]["margin"] is True
    write(tmp_path / "train-1.jsonl", [rows[0] | {"margin": "high"}])
    with pytest.raises(SimPOError, match="Column 'margin' holds numbers with a fraction in .* and text in train-1"):
        load(tmp_path)
