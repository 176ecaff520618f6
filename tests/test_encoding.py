"""Fast encoding: the ids and words of the plain way, to the last one, whatever the text."""

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import lines
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import (
    AlbertTokenizer,
    ByT5Tokenizer,
    DebertaV2Tokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    T5Tokenizer,
    XLNetTokenizer,
)

from hftune import encoding
from hftune.encoding import encode_batch, encode_offsets
from hftune.errors import UserError
from hftune.vocabulary import train

# What could go wrong when a text is cut: white space of all kinds, marks that combine, characters that decompose or
# turn into white space, contractions, bytes that look like others, and the tokenizers' own marks
AWKWARD = [
    *" \t\n\r\v\f\x1c\x85\xa0\u2003\u3000\u200b\ufeff\u2028\x00\x01\x7f\ufffd", "  ", "\r\n", " \n", "\n ",
    *"¨˘ͺ΄΅\u0301\u0338\u0600\u0e33\u0903\u0483\u05b0\ua66f;éßİﬁⅧΩÅῼ字カ한한हไ😀▁Ġ🏽", "≠", "=\u0338", "<\u0338", "e\u0301",
    "don't", "'s", "'ll", "'", "''", "``", "...", *"\"().,[]<>$_-=", "1", "23", "x1", "a", "the", "A", "THE", "##a", "▁the",
    "[MASK]", "[SEP]", "<mask>", "<|endoftext|>", "<extra_id_5>", "<s>", "</s>", "[UNK]", "<unk>", "[MA",
]  # fmt: skip
pieces = st.one_of(
    st.sampled_from(AWKWARD), st.sampled_from(AWKWARD).map(" ".__add__), st.characters(exclude_categories=["Cs"])
)
texts = st.lists(st.lists(pieces, max_size=12).map("".join), max_size=6)

OURS = [
    "wordpiece bert",
    "bpe gpt2",
    "bpe roberta",
    "bpe qwen2",
    "unigram t5",
    "unigram xlnet",
    "wordpiece bert low",
    "bpe gpt2 low",
    "unigram t5 low",
]
THEIRS = ["GPT2", "Roberta", "Roberta prefix", "Qwen", "T5", "XLNet", "Albert", "DebertaV2"]
MIXED = [
    "bpe nfkc",
    "bpe bert-norm",
    "wordpiece nfc",
    "wordpiece whitespace",
    "unigram metaspace",
    "unigram metaspace first",
    "wordpiece strip",
]


@cache
def corpus():
    return [row["text"][:1500] for row in lines("docs-text", limit=80)]


@cache
def real():
    """Real text: prose, code, tweets, two more languages."""
    out = [row["text"] for row in lines("docs-text", "validation", limit=12)] + [
        row["document"] for row in lines("code-summary", limit=60)
    ]
    out += [row["text"] for row in lines("sentiment-tweets", limit=60)]
    return out + [text for row in lines("translation-ui-en-de", limit=60) for text in row["translation"].values()]


def pipeline_of(base, normalizer=None, pre_tokenizer=None):
    backend = Tokenizer.from_str(make(base).backend_tokenizer.to_str())
    backend.normalizer = normalizer or backend.normalizer
    backend.pre_tokenizer = pre_tokenizer or backend.pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@cache
def make(name):
    def model(base):
        return json.loads(make(base).backend_tokenizer.to_str())["model"]

    def bpe(base):
        return {"vocab": model(base)["vocab"], "merges": [tuple(merge) for merge in model(base)["merges"]]}

    def unigram(*specials, base="unigram t5"):
        return [*((token, 0.0) for token in specials), *(tuple(entry) for entry in model(base)["vocab"] if entry[1])]

    bert = ["[CLS]", "[SEP]", "[MASK]"]
    match name:
        case "GPT2":
            return GPT2Tokenizer(**bpe("bpe gpt2"))
        case "Roberta" | "Roberta prefix":
            return RobertaTokenizer(**bpe("bpe roberta"), add_prefix_space="prefix" in name)
        case "Qwen":
            return Qwen2Tokenizer(**bpe("bpe qwen2"))
        case "T5":
            return T5Tokenizer(vocab=unigram("<pad>", "</s>", "<unk>"))
        case "XLNet":
            return XLNetTokenizer(
                vocab=unigram("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"), do_lower_case=True
            )
        case "Albert":
            return AlbertTokenizer(vocab=unigram("<pad>", "<unk>", *bert))
        case "DebertaV2":
            return DebertaV2Tokenizer(vocab=unigram("[PAD]", "[UNK]", *bert))
        case "bpe nfkc":
            return pipeline_of("bpe gpt2", normalizers.NFKC())
        case "bpe bert-norm":
            return pipeline_of("bpe gpt2", normalizers.BertNormalizer())
        case "wordpiece nfc":
            return pipeline_of("wordpiece bert", normalizers.NFC())
        case "wordpiece whitespace":
            return pipeline_of("wordpiece bert", pre_tokenizer=pre_tokenizers.Whitespace())
        case "wordpiece strip":
            return pipeline_of("wordpiece bert", normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()]))
        case "unigram metaspace" | "unigram metaspace first":
            scheme = "first" if "first" in name else "always"
            return pipeline_of("unigram t5", pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme=scheme))
    kind, model_type, *low = name.split()
    return train(corpus(), kind, 900, lowercase=bool(low), model_type=model_type)


def rows(ragged):
    return [row.tolist() for row in ragged]


def plain(tokenizer, texts):
    """ids and words without cutting."""
    memo = encoding._Memo(tokenizer, tokenizer.backend_tokenizer, True)
    found = memo.plain(texts)
    return found.values >> 1, found.values & 1


@pytest.fixture(autouse=True)
def always_cut(monkeypatch):
    monkeypatch.setattr(encoding, "FEW_CHARS", 0)
    monkeypatch.setattr(encoding, "BLOCK_CHARS", 2_000)
    monkeypatch.setattr(encoding, "MOST_PIECES", 5_000)


@pytest.mark.parametrize("name", [*OURS, *THEIRS, *MIXED])
@settings(max_examples=60, deadline=None)
@example(texts=["Ω \u0301Ω", "e\u0301 e\u0301\u0301e \u0301", "a\n\u05b0\u0903ह"])
@given(texts=texts)
def test_equals_the_tokenizer_on_any_text(name, texts):
    tokenizer = make(name)
    expected = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    assert rows(encode_batch(tokenizer, texts)) == expected
    ids, starts = encode_batch(tokenizer, texts, word_starts=True)
    assert rows(ids) == expected
    assert starts.values.tolist() == plain(tokenizer, texts)[1].tolist()
    assert starts.offsets.tolist() == ids.offsets.tolist()


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_equals_the_tokenizer_on_real_text(name):
    tokenizer = make(name)
    for special in (False, True):
        expected = tokenizer(real(), add_special_tokens=special, verbose=False)["input_ids"]
        ids = encode_batch(tokenizer, real(), add_special_tokens=special)
        assert ids.values.dtype == np.int32
        assert rows(ids) == expected
        ids, starts = encode_batch(tokenizer, real(), add_special_tokens=special, word_starts=True)
        assert rows(ids) == expected
        if not special:
            assert starts.values.tolist() == plain(tokenizer, real())[1].tolist()


def test_long_text_in_one_piece_or_many():
    tokenizer, text = make("wordpiece bert"), " ".join(corpus())
    assert len(text) > 50_000
    for one in (text, "x" * 5_000, " " * 5_000, "字" * 3_000):
        assert rows(encode_batch(tokenizer, [one])) == [
            tokenizer(one, add_special_tokens=False, verbose=False)["input_ids"]
        ]


@pytest.mark.parametrize("name", [*OURS, *sorted(set(THEIRS) - {"DebertaV2"})])
def test_text_met_before_is_not_tokenized_again(name, monkeypatch):
    monkeypatch.setattr(encoding, "MOST_PIECES", 100_000)
    tokenizer = make(name)
    encode_batch(tokenizer, real())
    seen = []
    genuine = encoding._Memo.plain
    monkeypatch.setattr(encoding._Memo, "plain", lambda self, texts: seen.extend(texts) or genuine(self, texts))
    encode_batch(tokenizer, real())
    assert sum(map(len, seen)) <= 0.01 * sum(map(len, real()))  # those that hold an added token


def test_what_is_remembered_is_bounded_in_scripts_without_spaces():
    """A text without spaces is one piece: half a million of them, with their ids, took gigabytes."""
    tokenizer = make("wordpiece bert")
    for text in range(1000):
        encode_batch(tokenizer, [f"{text} " + "字" * 20_000])
        held = sum(map(len, encoding._memos[tokenizer][False][1].index))
        assert held <= encoding.MOST_BYTES + 100_000
        if held < text * 60_000:
            return  # it has forgotten
    raise AssertionError("nothing was ever forgotten")


def test_memo_forgets_when_the_tokenizer_changes():
    tokenizer = pipeline_of("bpe gpt2")
    before = rows(encode_batch(tokenizer, ["the Frobnicate"]))
    tokenizer.add_tokens([AddedToken("Frobnicate", normalized=False)])
    after = rows(encode_batch(tokenizer, ["the Frobnicate"]))
    assert after == [tokenizer("the Frobnicate")["input_ids"]] != before
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert rows(encode_batch(tokenizer, ["THE"])) == rows(encode_batch(tokenizer, ["the"]))


def test_added_tokens_that_reach_across_words():
    tokenizer = pipeline_of("wordpiece bert low")
    tokenizer.add_tokens([AddedToken("new york", normalized=True), AddedToken("Z", single_word=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True, rstrip=True, normalized=False)])
    texts = ["in New York now", "a Z b aZb", "a  <x>  b", "a <x> Z"]
    assert rows(encode_batch(tokenizer, texts)) == tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", OURS)
def test_word_starts_agree_with_white_space(name):
    """Exactly one token of each word of the text begins where the word does, and it is flagged."""
    tokenizer = make(name)
    texts = [" ".join(text.split()) for text in corpus()]
    _, starts = encode_batch(tokenizer, texts, word_starts=True)
    _, begin, end = encode_offsets(tokenizer, texts)
    inside = []
    for i, text in enumerate(texts):
        flagged = np.flatnonzero(starts[i])
        at = begin[i] + np.array([text[b:e].startswith(" ") for b, e in zip(begin[i], end[i], strict=True)])
        words = {0} | {j + 1 for j, char in enumerate(text) if char == " "}
        normal = {j for j in words if text[j].isascii()}  # others may be normalized away
        assert normal <= set(at[flagged].tolist())
        inside += [text[j - 1 : j + 1] for j in at[flagged].tolist() if j not in words]
    if name.startswith("unigram"):
        assert not inside  # its words are those between spaces
    else:  # further words begin where punctuation or digits meet letters, never between two letters
        assert inside
        assert not any(pair.isalpha() and pair.isascii() for pair in inside)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("wordpiece bert low", "tokenizers, don't!", ["tokenizers", ",", "don", "'", "t", "!"]),
        ("bpe gpt2", "tokenizers, don't!", ["tokenizers", ",", " don", "'t", "!"]),
        ("unigram t5", "tokenizers, don't!", ["tokenizers,", "don't!"]),
        ("bpe gpt2", "a 日本 b", ["a", " 日", "本", " b"]),
        ("bpe gpt2", "ไทย", ["ไ", "ท", "ย"]),
        ("bpe roberta", "x \n é", ["x", " \n", " é"]),
        ("bpe roberta", "हिन्दी भाषा, हम", ["हिन्दी", " भाषा,", " हम"]),
        ("bpe qwen2", "हिन्दी भाषा, हम", ["हिन्दी", " भाषा,", " हम"]),
        ("bpe gpt2", "cafe\u0301s, שָׁלוֹם", ["cafe\u0301s", ",", " שָׁלוֹם"]),
        ("bpe gpt2", "می\u200cخواهم 1\ufe0f\u20e3", ["می\u200cخواهم", " 1\ufe0f\u20e3"]),
    ],
)
def test_words(name, text, words):
    tokenizer = make(name)
    ids, starts = encode_batch(tokenizer, [text], word_starts=True)
    flags = starts[0].astype(bool)
    groups = np.split(ids[0], np.flatnonzero(flags)[1:])
    decoded = ["".join(tokenizer.decode(group).split("▁")) for group in groups]
    assert [word.replace(" ", "") for word in decoded] == [word.replace(" ", "") for word in words]


def test_special_tokens_are_no_words_and_unknown_ones_are():
    tokenizer = make("wordpiece bert")
    ids, starts = encode_batch(tokenizer, ["the ☃ [SEP] the"], word_starts=True, add_special_tokens=True)
    tokens = tokenizer.convert_ids_to_tokens(ids[0])
    assert dict(zip(tokens, starts[0].tolist(), strict=True)) == {"[CLS]": 0, "the": 1, "[UNK]": 1, "[SEP]": 0}
    assert starts.values.dtype == np.int8


def test_truncation_of_an_earlier_call_is_not_in_force():
    tokenizer = pipeline_of("wordpiece bert")
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=6)
    assert len(encode_batch(tokenizer, ["the the the the"])[0]) == 4


def test_special_tokens_that_an_earlier_call_split_are_known_again():
    """Whether text held special tokens depended on what the tokenizer had been asked before."""
    tokenizer, texts = pipeline_of("wordpiece bert"), ["the [MASK]"]
    wanted = rows(encode_batch(tokenizer, texts))
    for encode in (encode_batch, lambda *given: encode_offsets(*given)[0]):
        assert tokenizer(texts, split_special_tokens=True, add_special_tokens=False)["input_ids"] != wanted
        assert rows(encode(tokenizer, texts)) == wanted


def test_tokenizer_without_a_rust_side():
    tokenizer = ByT5Tokenizer()
    texts = ["héllo wörld", "", "x</s>y"]
    for special in (False, True):
        assert (
            rows(encode_batch(tokenizer, texts, add_special_tokens=special))
            == tokenizer(texts, add_special_tokens=special)["input_ids"]
        )
    assert encode_batch(tokenizer, texts, word_starts=True)[1][0][0] == 1
    with pytest.raises(UserError, match="ByT5Tokenizer"):
        encode_offsets(tokenizer, texts)


@pytest.mark.parametrize("name", ["wordpiece bert", "bpe gpt2"])
def test_offsets_give_the_text_back(name):
    ids, starts, ends = encode_offsets(make(name), corpus()[:5])
    for text, row, begin, end in zip(corpus()[:5], ids, starts, ends, strict=True):
        covered = {at for b, e in zip(begin, end, strict=True) for at in range(b, e)}  # tokens may share a character
        assert covered >= {at for at, char in enumerate(text) if not char.isspace()}
        assert len(row) == len(begin)


@pytest.mark.parametrize("bad", ["\ud800", "fine \udfff"])
def test_text_that_is_not_unicode(bad):
    with pytest.raises(UserError, match="not valid Unicode"):
        encode_batch(make("bpe gpt2"), ["good", bad])


def test_nothing():
    assert rows(encode_batch(make("wordpiece bert"), [])) == []
    assert rows(encode_batch(make("wordpiece bert"), ["", " "])) == [[], []]
    assert rows(encode_batch(make("wordpiece bert"), [""], add_special_tokens=True)) == [[2, 3]]


def test_the_next_text_does_not_change_where_one_is_cut():
    """Spaces that end a text are one token of this vocabulary, whatever text stands behind it in the batch."""
    indented = "".join(f"if x:\n{' ' * deep}return {deep}{' ' * deep}\n" for deep in range(2, 60))
    tokenizer = train([indented] * 5, "bpe", 300, model_type="gpt2")
    texts = ["a    ", "b", "c  ", "", "d   ", "e"]
    expected = tokenizer(texts)["input_ids"]
    assert len(expected[0]) < 5  # merged
    assert rows(encode_batch(tokenizer, texts)) == expected
