"""Tokenizers trained from text: WordPiece, byte-level BPE and Unigram, with the special tokens that a model expects.

What an architecture expects is one row of FAMILIES. Training is deterministic: the same texts give the same file.
"""

import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .errors import UserError

COVERAGE = 0.9999  # share of the characters that a vocabulary of letters spells: small corpora keep their punctuation
ALPHABET = 1000  # most letters of a WordPiece vocabulary, as in BERT's own; more only where COVERAGE asks for them
WORD = 500  # most letters of a word that is looked up: Thai and Khmer set none apart, and time grows with the cube
SAMPLE = 20  # texts on which the saved tokenizer is tried
# sentencepiece's words for a size that the letters do not fit in
REQUIRED = re.compile(r"required_chars\D*\d+ vs (\d+)")
THREADS = 4  # of the Unigram trainer; its sums depend on the number, so it does not follow the machine
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Family:
    """The special tokens of related architectures.

    Attributes:
        roles: token of each role, in the order of their ids.
        single: template of one text; a name in braces is a role, `:n` a segment id.
        pair: template of two texts.
        model_types: the architectures.
        segments: the model takes token_type_ids.
        padding_side: side of padding.
        middle: further special tokens, with ids behind those of the roles.
        end: further special tokens, with the last ids.
        pattern: pre-tokenizer of a byte-level BPE where it is not GPT-2's.
    """

    roles: dict[str, str]
    single: str
    pair: str
    model_types: tuple[str, ...]
    segments: bool = False
    padding_side: str = "right"
    middle: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    pattern: str | None = None


_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_BERT_SINGLE, _BERT_PAIR = "{cls}:0 $A:0 {sep}:0", "{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"
_GPT = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|pad|>"}

FAMILIES = {
    "bert": Family(
        _BERT, _BERT_SINGLE, _BERT_PAIR, segments=True,
        model_types=(
            "bert", "electra", "albert", "deberta", "deberta-v2", "mobilebert", "big_bird", "convbert",
            "encoder-decoder",
        ),
    ),
    "modernbert": Family(
        _BERT, _BERT_SINGLE, _BERT_PAIR, ("modernbert", "distilbert", "nomic_bert", "eurobert"),
    ),
    "roberta": Family(
        {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"},
        "{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}",
        ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "bart", "mbart", "led", "m2m_100", "blenderbot"),
    ),
    "gpt2": Family(
        _GPT, "$A", "$A $B:1", ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "phi", "bloom", "mamba", "mamba2"),
    ),
    # transformers' class for Qwen names an unknown token, whatever is saved
    "qwen": Family(
        {**_GPT, "unk": "<|endoftext|>"}, "$A", "$A $B:1", ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"), pattern=QWEN,
    ),
    "llama": Family(
        {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}, "{bos} $A", "{bos} $A {bos}:1 $B:1",
        ("llama", "mistral", "mixtral", "gemma", "gemma2", "olmo", "olmo2", "smollm3", "granite"),
    ),
    # Raffel et al. 2020; the sentinels have the last ids, <extra_id_0> the very last
    "t5": Family(
        {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}, "$A {eos}", "$A {eos} $B {eos}",
        ("t5", "mt5", "umt5", "longt5", "switch_transformers", "pegasus", "pegasus_x"),
        end=tuple(f"<extra_id_{i}>" for i in reversed(range(100))),
    ),
    "marian": Family({"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}, "$A {eos}", "$A {eos} $B {eos}", ("marian",)),
    # Yang et al. 2019: the specials stand at the end, the class token in a segment of its own
    "xlnet": Family(
        {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "cls": "<cls>", "sep": "<sep>", "pad": "<pad>", "mask": "<mask>"},
        "$A:0 {sep}:0 {cls}:2", "$A:0 {sep}:0 $B:1 {sep}:1 {cls}:2", ("xlnet",),
        segments=True, padding_side="left", middle=("<eod>", "<eop>"),
    ),
}  # fmt: skip
DEFAULT = {"wordpiece": "bert", "bpe": "gpt2", "unigram": "t5"}


def family(kind: str, model_type: str | None) -> Family:
    """The family of an architecture; of one without a row, the one that the kind is best known from."""
    rows = (row for row in FAMILIES.values() if model_type in row.model_types)
    return next(rows, FAMILIES[DEFAULT[kind]])


def train(
    texts: Iterable[str],
    kind: str,
    vocab_size: int,
    *,
    lowercase: bool = False,
    min_frequency: int = 2,
    model_type: str | None = None,
    max_length: int = 512,
) -> Any:
    """A tokenizer trained from texts.

    WordPiece: BERT's normalizer, words and punctuation (Devlin et al. 2019). BPE: over bytes, so that any text comes
    back exactly (Radford et al. 2019). Unigram (Kudo 2018) by the sentencepiece library, since the trainer of the
    tokenizers library gives other figures at each run.

    Args:
        texts: the corpus. WordPiece reads it twice, and holds what can be read but once; Unigram's trainer holds all of it.
        kind: "wordpiece", "bpe" or "unigram".
        vocab_size: entries, special tokens included; fewer if the texts do not hold that many.
        lowercase: fold case and strip accents.
        min_frequency: least count of a pair to be merged (WordPiece and BPE; Unigram merges no pairs).
        model_type: architecture whose special tokens and templates are wanted; default: that of the kind.
        max_length: model_max_length of the tokenizer, in tokens.

    Raises:
        UserError: no text; a vocabulary too small for the special tokens and the alphabet; an architecture for which
            transformers would reload another tokenizer than this one.
    """
    from transformers import PreTrainedTokenizerFast

    row = family(kind, model_type)
    roles = dict(row.roles)
    if kind != "bpe" and roles.get("unk") in {None, roles.get("eos")}:
        roles["unk"] = "<|unk|>"  # bytes spell everything, letters do not
    first = list(dict.fromkeys([*roles.values(), *row.middle]))
    corpus = _Corpus(list(texts) if kind == "wordpiece" and iter(texts) is texts else texts)
    size = Size(vocab_size, len(row.end))
    try:
        match kind:
            case "wordpiece":
                backend = _wordpiece(corpus, first, size, min_frequency, lowercase, roles["unk"])
            case "bpe":
                backend = _bpe(corpus, first, size, min_frequency, lowercase, row.pattern)
            case _:
                backend = _unigram(corpus, first, size, lowercase, roles["unk"])
    finally:
        corpus.check()
    # the space before a mask belongs to the masked word, where tokens hold their space
    masks = [
        AddedToken(t, special=True, normalized=False, lstrip=kind != "wordpiece" and t == roles.get("mask"))
        for t in first
    ]
    backend.add_special_tokens(masks)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in row.end])
    backend.post_processor = _post_processor(backend, kind, row, roles)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{role}_token": token for role, token in roles.items()},
        extra_special_tokens=[*row.middle, *reversed(row.end)],
        model_input_names=["input_ids", *(["token_type_ids"] if row.segments else []), "attention_mask"],
        padding_side=row.padding_side,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        **({"do_lower_case": lowercase} if kind == "wordpiece" else {}),  # for those who load it as a BertTokenizer
    )
    _check_reload(tokenizer, model_type, corpus.sample)
    return tokenizer


class Again:
    """The texts that a function gives, anew each time that they are read."""

    def __init__(self, give: Callable[[], Iterator[str]]):
        self.give = give

    def __iter__(self) -> Iterator[str]:
        return self.give()


class _Corpus:
    """The texts, as they come; keeps the first few, and the fault that ended them: the trainers swallow it."""

    def __init__(self, texts: Iterable[str]):
        self.texts, self.sample = texts, list[str]()
        self.fault: BaseException | None = None
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self.texts:
                if len(self.sample) < SAMPLE and text.strip():
                    self.sample.append(text)
                yield text
            self.ended = True
        except GeneratorExit:  # the trainer wants no more
            raise
        except BaseException as fault:
            self.fault = fault
            raise

    def check(self) -> None:
        """Raise what the trainer did not."""
        if self.fault is not None:
            raise self.fault
        if self.ended and not self.sample:
            raise UserError("there is no text to train from", hint="see that the files hold text, in the column named")


@dataclass(frozen=True)
class Size:
    """Entries of a vocabulary: those asked for, and how many of them are special tokens at its end, which no trainer sees."""

    asked: int
    end: int

    @property
    def trained(self) -> int:
        """Entries to be trained."""
        return self.asked - self.end

    def too_small(self, least: int, what: str) -> UserError:
        """The fault of a size that `least` entries do not fit in, those at the end not counted."""
        least += self.end
        return UserError(
            f"a vocabulary of {self.asked} is too small: {what} alone are {least} entries",
            hint=f"set it well above {least}",
            where="tokenizer.vocab_size",
        )


def _folding(lowercase: bool) -> list[Any]:
    """Case and accents folded; composed again, so that Hangul stays in syllables."""
    if not lowercase:
        return []
    return [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.NFC()]


def _wordpiece(
    corpus: _Corpus, first: list[str], size: Size, min_frequency: int, lowercase: bool, unk: str
) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in corpus:
        counts.update(text)
    letters: Counter[str] = Counter()
    for char, count in counts.items():
        for letter in "".join(backend.normalizer.normalize_str(char).split()):
            letters[letter] += count
    alphabet = sorted(_commonest(letters, lambda c: 1 + _within(backend, c), size.trained * 3 // 4))
    # The trainer numbers the continuing letters as a hash table yields them, other at each run: so they go in first
    inner = [f"##{c}" for c in alphabet if _within(backend, c)]
    if (least := len(first) + len(inner) + len(alphabet)) >= size.trained:
        raise size.too_small(least, "special tokens and letters")
    trainer = trainers.WordPieceTrainer(
        vocab_size=size.trained,
        min_frequency=min_frequency,
        special_tokens=[*first, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    trained = Tokenizer(models.WordPiece(backend.get_vocab(), unk_token=unk, max_input_chars_per_word=WORD))
    trained.normalizer, trained.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trained.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return trained


def _within(backend: Tokenizer, letter: str) -> bool:
    """Whether a letter can go on with a word: a punctuation mark or an ideograph is one by itself."""
    return len(backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(f"a{letter}"))) == 1


def _commonest(letters: Counter[str], entries: Callable[[str], int], room: int) -> list[str]:
    """ALPHABET letters; of scripts with more of them as many as come to COVERAGE, while their entries are at most `room`."""
    ordered = sorted(letters, key=lambda c: (-letters[c], c))
    wanted, spelled, taken = COVERAGE * letters.total(), 0, 0
    for number, letter in enumerate(ordered):
        taken += entries(letter)
        if number >= ALPHABET and (spelled >= wanted or taken > room):
            return ordered[:number]
        spelled += letters[letter]
    return ordered


def _bpe(
    corpus: _Corpus, first: list[str], size: Size, min_frequency: int, lowercase: bool, pattern: str | None
) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = _folding(lowercase)
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        steps = steps or [normalizers.NFC()]
    if steps:
        backend.normalizer = normalizers.Sequence(steps) if len(steps) > 1 else steps[0]
    backend.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    if (least := len(first) + len(letters)) >= size.trained:
        raise size.too_small(least, "special tokens and bytes")
    trainer = trainers.BpeTrainer(
        vocab_size=size.trained,
        min_frequency=min_frequency,
        special_tokens=first,
        initial_alphabet=letters,
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return backend


def _unigram(corpus: _Corpus, first: list[str], size: Size, lowercase: bool, unk: str) -> Tokenizer:
    import sentencepiece

    normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), *_folding(lowercase)])
    lines = (line for text in corpus for line in normalizer.normalize_str(text).splitlines() if line)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="unigram",
            vocab_size=max(1, size.trained - len(first) + 1),  # its only special entry is the unknown one
            hard_vocab_limit=False,
            character_coverage=COVERAGE,
            normalization_rule_name="identity",
            max_sentence_length=1 << 30,  # longer ones would be left out
            bos_id=-1,
            eos_id=-1,
            num_threads=THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        if needed := REQUIRED.search(str(error)):
            raise size.too_small(int(needed[1]) - 1 + len(first), "special tokens and letters") from error
        raise UserError(
            f"a vocabulary of {size.asked} cannot be trained: {str(error).splitlines()[-1][-160:]}",
            hint="the special tokens and every letter of the text must fit in it",
            where="tokenizer.vocab_size",
        ) from error
    read = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(read.id_to_piece(i), read.get_score(i)) for i in range(1, read.get_piece_size())]
    entries = [*((token, 0.0) for token in first), *((piece, score) for piece, score in pieces if piece not in first)]
    backend = Tokenizer(models.Unigram(entries, unk_id=first.index(unk)))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    return backend


def _post_processor(backend: Tokenizer, kind: str, row: Family, roles: dict[str, str]) -> Any:
    ids = [(token, backend.token_to_id(token)) for token in set(roles.values())]
    template = processors.TemplateProcessing(
        single=row.single.format(**roles), pair=row.pair.format(**roles), special_tokens=sorted(ids)
    )
    return (
        processors.Sequence([processors.ByteLevel(add_prefix_space=False, trim_offsets=True), template])
        if kind == "bpe"
        else template
    )


def _check_reload(tokenizer: Any, model_type: str | None, sample: list[str]) -> None:
    """transformers forces a class of its own on some architectures, whatever the tokenizer's files say."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        if model_type:
            Path(folder, "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        again = AutoTokenizer.from_pretrained(folder)
    texts = [text[:2000] for text in sample]
    if again(texts, texts, verbose=False).data != tokenizer(texts, texts, verbose=False).data:
        raise UserError(
            f"beside a {model_type} model transformers reloads this tokenizer as another, {type(again).__name__}",
            hint="use kind bpe without lowercase, or another architecture",
            where="tokenizer",
        )
