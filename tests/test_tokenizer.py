"""Loading, saving, checking: what is wrong is one line, and what is saved comes back."""

import json
import subprocess
import sys

import pytest
import tiny
from tiny import lines
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hftune import prepare, recipe, tokenizer
from hftune.errors import UserError
from hftune.report import Reporter
from hftune.vocabulary import train


@pytest.fixture(scope="module")
def texts():
    return [row["text"][:1500] for row in lines("docs-text", limit=60)]


@pytest.fixture
def made(texts):
    return train(texts, "wordpiece", 500, model_type="bert", max_length=64)


@pytest.fixture
def folder(made, tmp_path):
    tokenizer.save(made, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def with_config(folder, **settings):
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def with_length(folder, length):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": length}))
    return folder


def test_loads_what_it_saved(made, folder, texts):
    again = tokenizer.load(str(folder))
    assert again(texts, texts[::-1], verbose=False).data == made(texts, texts[::-1], verbose=False).data
    assert tokenizer.fingerprint(again) == tokenizer.fingerprint(made)


def test_fingerprint_tells_tokenizers_apart(made, texts):
    prints = {tokenizer.fingerprint(made)}
    for name, value in (
        ("padding_side", "left"),
        ("truncation_side", "left"),
        ("chat_template", "a"),
        ("chat_template", "b"),
    ):
        setattr(made, name, value)
        prints.add(tokenizer.fingerprint(made))
    made.add_tokens(["frobnicate"])
    prints.add(tokenizer.fingerprint(made))
    prints.add(tokenizer.fingerprint(train(texts, "wordpiece", 501)))
    assert len(prints) == 7


def test_settings_changed_after_loading_are_saved(made, tmp_path):
    made.padding_side, made.truncation_side = "left", "left"
    made.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save(made, tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (again.padding_side, again.truncation_side) == ("left", "left")
    assert set(again("a", "b")) == {"input_ids", "attention_mask"}


def test_truncation_of_an_earlier_call_is_not_saved(made, tmp_path, texts):
    made(texts, truncation=True, max_length=5, padding="max_length")
    tokenizer.save(made, tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    assert stored["truncation"] is None
    assert stored["padding"] is None


@pytest.mark.parametrize(
    ("stored", "config", "usable"),
    [
        (64, {}, 64),
        (int(1e30), {}, 512),
        (int(1e30), {"model_type": "bert", "max_position_embeddings": 128}, 128),
        (512, {"model_type": "bert", "max_position_embeddings": 128}, 128),
        (64, {"model_type": "bert", "max_position_embeddings": 128}, 64),
        (int(1e30), {"model_type": "roberta", "max_position_embeddings": 514}, 512),
        (int(1e30), {"model_type": "gpt2", "n_positions": 256}, 256),
    ],
)
def test_length_that_the_model_can_take(folder, tmp_path, stored, config, usable):
    with_config(with_length(folder, stored), **config)
    assert tokenizer.load(str(folder)).model_max_length == usable
    with_config(tmp_path, **config)
    unbounded = AutoTokenizer.from_pretrained(folder)
    unbounded.model_max_length = stored
    tokenizer.save(unbounded, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == usable


def test_folder_without_a_tokenizer_is_refused(tmp_path):
    with_config(tmp_path, model_type="bert")
    with pytest.raises(UserError, match=r"no tokenizer in .*tokenizer\.json, vocab\.txt") as fault:
        tokenizer.load(str(tmp_path))
    assert "train one" in fault.value.hint


def test_settings_alone_are_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer in"):
        tokenizer.load(str(folder))


def test_broken_file_is_one_line(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot load the tokenizer") as fault:
        tokenizer.load(str(folder))
    assert "\n" not in fault.value.message


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/place", "~/no/such/place", "a/b/c"])
def test_no_such_folder(path):
    with pytest.raises(UserError, match="no folder"):
        tokenizer.load(path)


def test_a_file_is_no_folder(folder):
    with pytest.raises(UserError, match="is a file"):
        tokenizer.load(str(folder / "tokenizer.json"))


def test_hub_out_of_reach():
    with pytest.raises(UserError, match="Hub cannot be reached") as fault:
        tokenizer.load("somebody/something")
    assert "HF_HUB_OFFLINE" in fault.value.hint


def test_special_tokens_alone_are_no_vocabulary(made, tmp_path):
    from tokenizers import Tokenizer, models

    specials = list(made.special_tokens_map.values())
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(specials)}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, **made.special_tokens_map).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds only special tokens"):
        tokenizer.load(str(tmp_path))


def test_an_end_that_is_also_padding_is_no_fault(texts):
    """Losses go by position, so the end of a text is learned all the same."""
    made = train(texts, "bpe", 500, model_type="gpt2")
    made.pad_token = made.eos_token
    assert tokenizer.check(made, 600, texts[:2]) == []


def test_ids_without_a_row_are_refused(made, texts):
    assert tokenizer.check(made, len(made), texts) == []
    with pytest.raises(UserError, match=rf"{len(made)} entries.*{len(made) - 1} rows"):
        tokenizer.check(made, len(made) - 1, texts)


def test_unknown_text_is_warned_of(made):
    (line,) = tokenizer.check(made, len(made), ["жук " * 10 + "the " * 10])
    assert line.startswith("50.0% of the tokens are [UNK]")


@pytest.mark.parametrize(("strange", "told"), [(0, False), (3, True), (40, True)])
def test_preparing_warns_of_unknown_text_too(folder, tmp_path, capsys, strange, told):
    """Each text is of two special tokens and four words that one token each stands for."""
    source = tiny.classify(tmp_path, str(folder))
    texts = ["жук " * 4 if number < strange else "the " * 4 for number in range(40)]
    rows = [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(texts)]
    source["data"] = {
        "train": str(tiny.write_rows(tmp_path / "rows.jsonl", rows)),
        "cache_dir": str(tmp_path / "cache"),
    }
    prepare.prepare(recipe.from_dict(source), ["train"], Reporter())
    shown = " ".join(capsys.readouterr().out.split())
    assert (f"warning: train: {strange / 40:.1%} of the tokens are [UNK]" in shown) == told


@pytest.mark.parametrize(
    ("kind", "size", "fewer"), [("bpe", 300, False), ("bpe", 50_000, True), ("wordpiece", 50_000, True)]
)
def test_a_training_that_gives_fewer_entries_says_how_many(tmp_path, capsys, kind, size, fewer):
    source = tiny.mlm(tmp_path)
    source["tokenizer"] = {"train": kind, "vocab_size": size}
    prepared = prepare.prepare(recipe.from_dict(source), [], Reporter())
    shown = capsys.readouterr().out
    assert (len(prepared.tokenizer) < size) == fewer
    assert (f"it has {len(prepared.tokenizer):,} entries" in shown) == fewer


def test_import_is_cheap():
    code = "import sys, hftune.tokenizer; print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
