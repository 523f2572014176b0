"""Rows with pictures, sound or film: dropped and counted wherever they come from; empty columns of media do no harm."""

import pytest
from datasets import Audio, Dataset, Features, Image, IterableDataset, Json, List, Value, Video

from pair_files import load, write
from simpo_trainer.baselines.rows import conversation_rows
from simpo_trainer.data.drops import RowDropped
from simpo_trainer.data.load import DataConfig, load_preferences
from simpo_trainer.data.media import media_part, note_media
from simpo_trainer.data.messages import check_prompt
from simpo_trainer.errors import SimPOError
from simpo_trainer.tokens.settings import RowSettings
from simpo_trainer.tokens.tokenization import tokenize_preferences, tokenize_stream
from toy import assistant, toy_pairs, toy_tokenizer, user

CHAT = toy_pairs(4, conversational=True)
TEXT = toy_pairs(4)
SETTINGS = RowSettings(max_length=512, max_prompt_length=256)


def tokens(rows):
    return tokenize_preferences(rows, toy_tokenizer(), SETTINGS)


def ranked(row):
    return {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]], "scores": [2, 1]}


def sharegpt(row):
    sides = {side: {"from": "gpt", "value": row[side][0]["content"]} for side in ("chosen", "rejected")}
    return {"conversations": [{"from": "human", "value": row["prompt"][-1]["content"]}], **sides}


def alpaca(row):
    sides = {side: row[side][0]["content"] for side in ("chosen", "rejected")}
    return {"instruction": row["prompt"][-1]["content"], **sides}


def hh_rlhf(row):
    asked = row["prompt"][-1]["content"]
    return {side: f"\n\nHuman: {asked}\n\nAssistant: {row[side][0]['content']}" for side in ("chosen", "rejected")}


def text(row):
    return {field: messages[0]["content"] for field, messages in row.items()}


FORMATS = {
    "pairs": (lambda row: row, {}),
    "texts": (text, {}),
    "ranked": (ranked, {}),
    "sharegpt": (sharegpt, {}),
    "alpaca": (alpaca, {}),
    "hh_rlhf": (hh_rlhf, {"dataset_format": "hh_rlhf"}),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_row_with_media_is_dropped_and_counted_in_every_format(tmp_path, name, streaming):
    written, settings = FORMATS[name]
    rows = [written(row) | {"images": ["c.png"] if place == 1 else []} for place, row in enumerate(CHAT)]
    train, _ = load(write(tmp_path / "pairs.jsonl", rows), streaming=streaming, **settings)
    if streaming:
        found = list(tokenize_stream(train, toy_tokenizer(), SETTINGS))
        assert sorted(str(row["reason"]) for row in found) == ["None", "None", "None", "media"]
        return
    kept, report = tokens(train)
    dropped = report.dropped["media"]
    assert (kept["row"][:], dropped.count, dropped.first_row) == ([0, 2, 3], 1, 1)
    assert dropped.detail == "in the column 'images'"


@pytest.mark.parametrize("column", ["image", "images", "video", "videos", "audio", "audios", "Images"])
def test_every_column_of_media_is_looked_at(column):
    with pytest.raises(SimPOError, match=rf"4 \(media, first row 0\).*in the column '{column}'.*Remove these rows"):
        tokens(Dataset.from_list([row | {column: "a.bin"} for row in CHAT]))


@pytest.mark.parametrize("empty", [None, [], [None], "", "[]", {"path": None}])
def test_empty_media_change_nothing(tmp_path, empty):
    rows = [row | {"images": empty} for row in CHAT]
    expected = tokens(Dataset.from_list(CHAT))[0].to_list()
    assert tokens(Dataset.from_list(rows))[0].to_list() == expected
    assert "media_in" not in load(write(tmp_path / "pairs.jsonl", rows))[0].column_names
    stream = Dataset.from_list(rows).to_iterable_dataset()
    assert all(row["reason"] is None for row in tokenize_stream(stream, toy_tokenizer(), SETTINGS))


def test_csv_writes_nothing_in_several_ways(tmp_path):
    written = ["", "[]", "null", "c.png"]
    rows = [row | {"images": cell} for row, cell in zip(TEXT, written, strict=True)]
    kept, _ = tokens(load(write(tmp_path / "pairs.csv", rows))[0])
    assert kept["row"][:] == [0, 1, 2]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("feature", [Image(), Audio(), Video(), List(Image())])
def test_features_of_media_are_not_decoded_whatever_their_column(feature, streaming):
    broken = {"bytes": b"no picture", "path": None}
    cells = [None, [broken] if isinstance(feature, List) else broken, None, None]
    features = Dataset.from_list(CHAT).features | {"seen": feature}
    stored = Features(features | {"seen": List(_STORED) if isinstance(feature, List) else _STORED})
    rows = [row | {"seen": cell} for row, cell in zip(CHAT, cells, strict=True)]
    dataset = Dataset.from_list(rows, features=stored).cast(Features(features))
    if streaming:
        found = tokenize_stream(dataset.to_iterable_dataset(), toy_tokenizer(), SETTINGS)
        assert [row["reason"] for row in found] == [None, "media", None, None]
    else:
        assert tokens(dataset)[0]["row"][:] == [0, 2, 3]
        assert tokens(dataset.select([3, 1, 0]))[0]["row"][:] == [0, 2]


_STORED = {"bytes": Value("binary"), "path": Value("string")}


def test_media_in_objects_of_any_keys():
    features = Features({"chosen": Value("string"), "images": Json()})
    cells = [None, [], [{"url": "a"}], "b", {"url": ""}]
    rows = Dataset.from_list([{"chosen": "a", "images": cell} for cell in cells], features=features)
    expected = [None, None, "images", "images", None]
    assert note_media(rows)["media_in"][:] == expected
    assert [row["media_in"] for row in note_media(rows.to_iterable_dataset())] == expected


def test_messages_beside_media_stay_objects_in_a_stream():
    features = Features(dict.fromkeys(CHAT[0], List(Json())) | {"image": Image()})
    rows = Dataset.from_list([row | {"image": None} for row in CHAT], features=features)
    assert list(note_media(rows.to_iterable_dataset()).remove_columns("media_in")) == CHAT


def test_stream_that_knows_no_types():
    def rows():
        yield from (row | {"image": None if place else "c.png"} for place, row in enumerate(CHAT))

    found = tokenize_stream(IterableDataset.from_generator(rows), toy_tokenizer(), SETTINGS)
    assert [row["reason"] for row in found] == ["media", None, None, None]


def test_column_that_is_read_as_a_field_is_none_of_media():
    rows = Dataset.from_list([{"image": "a b", "rejected": "a c"}])
    assert note_media(rows, {"image"}) is rows


def test_mixture_of_a_source_with_media_and_one_without(tmp_path):
    first = write(tmp_path / "a.jsonl", [row | {"images": ["c.png"][:place]} for place, row in enumerate(CHAT[:2])])
    second = write(tmp_path / "b.jsonl", CHAT[2:])
    for streaming in (False, True):
        train, _ = load_preferences(DataConfig(dataset_mixer={first: 1, second: 1}, streaming=streaming))
        whole = Dataset.from_list(list(train), features=train.features)
        kept, report = tokens(whole)
        assert (len(kept), report.dropped["media"].count) == (3, 1)


def test_evaluation_set_too(tmp_path):
    train = write(tmp_path / "train.jsonl", CHAT)
    test = write(tmp_path / "test.jsonl", [row | {"audio": "d.wav" if row is CHAT[0] else None} for row in CHAT])
    _, held_out = load(train, eval_dataset_name=test)
    assert tokens(held_out)[0]["row"][:] == [1, 2, 3]


PARTS = [
    {"type": "image"},
    {"type": "image_url", "image_url": {"url": "a"}},
    {"type": "input_audio", "input_audio": {}},
    {"type": "video", "video": "a.mp4"},
    {"image": "a.png", "text": None},
]


@pytest.mark.parametrize("part", PARTS)
def test_media_inside_messages(part):
    content = [{"type": "text", "text": "Which colour?"}, part]
    with pytest.raises(RowDropped) as caught:
        check_prompt([user(content)])
    assert caught.value.reason == "media"
    rows = [row | {"prompt": [user(content)]} if place == 1 else row for place, row in enumerate(CHAT)]
    dataset = Dataset.from_list(rows, on_mixed_types="use_json")
    kept, report = tokens(dataset)
    assert (kept["row"][:], report.dropped["media"].count) == ([0, 2, 3], 1)


def test_text_parts_are_no_media():
    assert media_part([{"type": "text", "text": "image", "image": None}, {"text": "a", "image": None}]) is None


def test_conversations_without_answers_to_choose_from(tmp_path):
    turns = [
        {"messages": [user("<image>Which colour?"), assistant("Teal.")], "images": [[], ["c.png"]][i]} for i in (0, 1)
    ]
    path = write(tmp_path / "rows.jsonl", turns)
    from_recipe, _ = load_preferences(DataConfig(dataset_name=path), conversations=True)
    for rows in (from_recipe, Dataset.from_list(turns)):
        with pytest.raises(SimPOError, match=r"set: row 1 has something in the column 'images'.*Remove the rows"):
            conversation_rows(rows, "set", toy_tokenizer(), RowSettings())
        kept = conversation_rows(rows.select([0]), "set", toy_tokenizer(), RowSettings())
        assert kept.column_names == ["messages"]
    inside = [{"messages": [user([{"type": "image"}]), assistant("Teal.")]}]
    with pytest.raises(SimPOError, match="row 0 has a content part of the type 'image'"):
        conversation_rows(Dataset.from_list(inside, on_mixed_types="use_json"), "set", toy_tokenizer(), RowSettings())
