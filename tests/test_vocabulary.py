"""Trained tokenizers: the same file each time, the same ids after reloading, the special tokens of each family."""

import json
import random
import re
import tracemalloc
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import lines
from transformers import AutoTokenizer, BertTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hftune import tokenizer
from hftune.errors import UserError
from hftune.vocabulary import FAMILIES, Again, family, train

KINDS = ("wordpiece", "bpe", "unigram")
SIZE = 700
FORCED = {"qwen2", "qwen2_moe"}  # transformers loads these as Qwen2Tokenizer, whatever the files say
PAIRS = [(kind, name) for kind in KINDS for name in FAMILIES if kind == "bpe" or name != "qwen"]


@cache
def corpus():
    return [row["text"][:1500] for row in lines("docs-text", limit=80)]


@cache
def short_texts():
    """500 real texts of several languages and kinds."""
    tweets = [row["text"] for row in lines("sentiment-tweets", limit=200)]
    french = [text for row in lines("translation-ui-en-fr", limit=100) for text in row["translation"].values()]
    code = [row["document"][:200] for row in lines("code-summary", limit=100)]
    return tweets + french + code


@cache
def trained(kind, name, lowercase=False):
    row = FAMILIES[name]
    return train(corpus(), kind, SIZE, lowercase=lowercase, model_type=row.model_types[0], max_length=64)


def files(made, folder):
    tokenizer.save(made, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_training_again_gives_the_same_files(kind, lowercase, tmp_path):
    made = [train(iter(corpus()), kind, 900, lowercase=lowercase) for _ in range(3)]
    first, *others = [files(one, tmp_path / str(i)) for i, one in enumerate(made)]
    assert set(first) >= {"tokenizer.json", "tokenizer_config.json"}
    assert all(other == first for other in others)


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_reloads_beside_every_model_of_its_family(kind, name, tmp_path):
    made = trained(kind, name)
    tokenizer.save(made, tmp_path)
    texts = short_texts()
    assert len(texts) == 500
    single, pairs = made(texts, verbose=False).data, made(texts, texts[::-1], verbose=False).data
    for at, model_type in enumerate([None, *FAMILIES[name].model_types]):
        if model_type in CONFIG_MAPPING_NAMES:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        again = AutoTokenizer.from_pretrained(tmp_path)
        few = len(texts) if at < 2 else 20
        assert again(texts[:few], verbose=False).data == {key: value[:few] for key, value in single.items()}
        assert again(texts[:few], texts[::-1][:few], verbose=False).data == {
            key: value[:few] for key, value in pairs.items()
        }
        assert (again.model_max_length, again.padding_side) == (64, made.padding_side)
        assert again.special_tokens_map == made.special_tokens_map
        assert tokenizer.fingerprint(again) == tokenizer.fingerprint(made)


EXPECTED = {
    "bert": ("[CLS] a [SEP] b [SEP]", [0, 0, 0, 1, 1]),
    "modernbert": ("[CLS] a [SEP] b [SEP]", None),
    "roberta": ("<s> a </s> </s> b </s>", None),
    "gpt2": ("a b", None),
    "qwen": ("a b", None),
    "llama": ("<s> a <s> b", None),
    "t5": ("a </s> b </s>", None),
    "marian": ("a </s> b </s>", None),
    "xlnet": ("a <sep> b <sep> <cls>", [0, 0, 1, 1, 2]),
}


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_special_tokens_of_the_family(kind, name):
    made, row = trained(kind, name), FAMILIES[name]
    template, segments = EXPECTED[name]
    pair = made("a", "b")
    assert " ".join(token.strip("▁Ġ") for token in made.convert_ids_to_tokens(pair["input_ids"])) == template
    assert pair.get("token_type_ids") == segments
    assert list(made.model_input_names) == [
        key for key in ("input_ids", "token_type_ids", "attention_mask") if key in pair
    ]
    ids = made.convert_tokens_to_ids(list(dict.fromkeys([*row.roles.values(), *row.middle])))
    assert ids == list(range(len(ids)))
    assert all(getattr(made, f"{role}_token") == token for role, token in row.roles.items())
    assert made.pad_token is not None
    assert made.pad_token not in {made.eos_token, made.bos_token, made.unk_token, made.mask_token}
    assert (made.unk_token is not None) or kind == "bpe"
    assert len(made) == made.vocab_size + len(made.get_added_vocab()) - sum(
        id < made.vocab_size for id in made.get_added_vocab().values()
    )
    masked = made(f"the {made.mask_token}.")["input_ids"] if made.mask_token else []
    assert masked.count(made.mask_token_id) == (1 if made.mask_token else 0)
    if made.mask_token and kind != "wordpiece":  # the space before belongs to the masked word
        at = masked.index(made.mask_token_id)
        assert made.convert_ids_to_tokens(masked[at - 1]) not in {"▁", "Ġ"}


@pytest.mark.parametrize("name", ["bert", "modernbert", "roberta", "xlnet"])
def test_families_of_masked_models_have_a_mask(name):
    assert "mask" in FAMILIES[name].roles


def test_sentinels_of_t5_have_the_last_ids():
    made = trained("unigram", "t5")
    last = len(made) - 1
    assert [made.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(100)] == list(range(last, last - 100, -1))
    assert made.all_special_tokens[-100:] == [f"<extra_id_{i}>" for i in range(100)]
    assert made.decode(made("a <extra_id_0> b")["input_ids"], skip_special_tokens=True).split() == ["a", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_is_as_large_as_asked(kind):
    assert len(train(corpus(), kind, 900)) == 900


def unknown(made, texts):
    """The share of the tokens of texts that stand for what cannot be spelled."""
    ids = [id for row in made(texts, add_special_tokens=False, verbose=False)["input_ids"] for id in row]
    return ids.count(made.unk_token_id) / len(ids)


@pytest.mark.parametrize("first", ["一", "가"])  # each a word by itself, or parts of words
def test_scripts_of_more_than_a_thousand_letters_are_spelled(first):
    """A fifth of such a text was unknown to the vocabulary trained from it, however large it was to be."""
    letters = [chr(ord(first) + i) for i in range(2500)]
    chance = random.Random(0)
    weights = [1 / (rank + 20) for rank in range(len(letters))]  # as letters are spread in real text
    texts = [" ".join("".join(chance.choices(letters, weights, k=3)) for _ in range(30)) for _ in range(300)]
    assert unknown(train(texts, "wordpiece", 8000), texts) < 1e-3
    small = train(texts, "wordpiece", 2600)  # not all fit, and some room is left for words
    assert len(small) <= 2600
    assert unknown(small, texts) < 0.4
    own = set(small.get_vocab())
    assert ("##" + first in own) == (first == "가"), "an ideograph never goes on with a word"


def test_a_sentence_without_spaces_is_no_unknown_word(tmp_path):
    """Of text without spaces each clause of more than a hundred letters was lost."""
    clause = "การพัฒนาระบบประมวลผลภาษาธรรมชาติสำหรับภาษาไทยนั้นมีความท้าทายหลายประการ"
    pieces = [clause[i : i + 7] for i in range(0, len(clause) - 7, 3)]
    made = train(pieces * 3, "wordpiece", 400)
    tokenizer.save(made, tmp_path)
    for loaded in (made, AutoTokenizer.from_pretrained(tmp_path)):
        ids = loaded(clause * 4, add_special_tokens=False)["input_ids"]
        assert loaded.decode(ids) == clause * 4
    assert made("a" * 501, add_special_tokens=False)["input_ids"] == [made.unk_token_id]


def test_row_of_an_architecture():
    assert family("bpe", "bart") is FAMILIES["roberta"]
    assert family("wordpiece", "never heard of") is FAMILIES["bert"]
    types = [t for row in FAMILIES.values() for t in row.model_types]
    assert len(types) == len(set(types))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_come_back_exactly(text):
    made = trained("bpe", "gpt2")
    ids = made(text, split_special_tokens=True)["input_ids"]
    assert made.decode(ids) == text


@pytest.mark.parametrize("name", ["gpt2", "roberta", "llama"])
def test_real_text_comes_back_exactly_from_bytes(name):
    made = trained("bpe", name)
    for text in [*short_texts(), *corpus()]:
        assert made.decode(made(text, add_special_tokens=False, verbose=False)["input_ids"]) == text


@pytest.mark.parametrize(("kind", "lowercase"), [("unigram", False), ("unigram", True), ("wordpiece", True)])
def test_real_text_comes_back_but_for_spaces(kind, lowercase):
    made = trained(kind, "bert", lowercase)
    back = 0
    for text in corpus():
        ids = made(text, add_special_tokens=False, verbose=False)["input_ids"]
        normal = made.backend_tokenizer.normalizer.normalize_str(text)
        back += "".join(made.decode(ids).split()) == "".join(normal.split())
        assert made.unk_token_id not in ids or back <= len(corpus())
    assert back >= 0.9 * len(corpus())  # the rest hold letters too rare for the alphabet


@pytest.mark.parametrize("kind", KINDS)
def test_lowercase_folds_case_and_accents(kind):
    made = trained(kind, "bert", True)
    assert made("Café DÉJÀ")["input_ids"] == made("cafe deja")["input_ids"]
    plain = trained(kind, "bert")
    assert plain("The")["input_ids"] != plain("the")["input_ids"]


@pytest.mark.parametrize("lowercase", [False, True])
def test_loads_as_the_concrete_class_too(lowercase, tmp_path):
    made = trained("wordpiece", "bert", lowercase)
    tokenizer.save(made, tmp_path)
    texts = short_texts()
    assert BertTokenizer.from_pretrained(tmp_path)(texts, verbose=False).data == made(texts, verbose=False).data


@pytest.mark.parametrize(("kind", "lowercase"), [("wordpiece", False), ("unigram", False), ("bpe", True)])
def test_refuses_what_transformers_would_reload_as_another(kind, lowercase):
    with pytest.raises(UserError, match="Qwen2Tokenizer"):
        train(corpus(), kind, SIZE, lowercase=lowercase, model_type="qwen2")


@pytest.mark.parametrize("model_type", ["bert", "t5"])  # t5 has a hundred special tokens at the end
@pytest.mark.parametrize(
    ("kind", "size"), [("wordpiece", 60), ("bpe", 50), ("bpe", 200), ("unigram", 40), ("unigram", 4)]
)
def test_too_small_a_vocabulary_is_told_with_a_size_that_is_not(kind, size, model_type):
    with pytest.raises(UserError, match=f"a vocabulary of {size} is too small") as fault:
        train(corpus(), kind, size, model_type=model_type)
    assert fault.value.where == "tokenizer.vocab_size"
    least = int(re.search(r"well above (\d+)", fault.value.hint)[1])
    if size > 10:
        assert len(train(corpus(), kind, least + 10, model_type=model_type)) <= least + 10


@pytest.mark.parametrize("kind", KINDS)
def test_no_text(kind):
    for nothing in ([], ["", "  \n"]):
        with pytest.raises(UserError, match="no text"):
            train(nothing, kind, SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_while_reading_is_not_swallowed(kind):
    """The Rust and C++ trainers would go on with the part that they had."""

    def texts():
        yield from corpus()
        raise UserError("broken line", where="text.jsonl:81")

    with pytest.raises(UserError, match="broken line"):
        train(texts(), kind, SIZE)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_corpus_is_read_as_it_comes(kind):
    """WordPiece held all of it: a corpus of some gigabytes did not fit the memory."""
    text = " ".join(corpus())[:5_000]
    texts = Again(lambda: (f"{text} {number}" for number in range(1500)))
    tracemalloc.start()
    made = train(texts, kind, 400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1500 * len(text) / 2
    once = train(iter(list(texts)), kind, 400)
    assert made.backend_tokenizer.to_str() == once.backend_tokenizer.to_str()
