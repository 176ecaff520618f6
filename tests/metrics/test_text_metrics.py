"""Figures of texts equal those of the programs they are named after."""

import itertools
import json
import random
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import metadata

import noisy
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize
from sacrebleu.metrics import BLEU, CHRF, TER

from hftune import metrics
from hftune.errors import UserError
from hftune.metrics.words import sentences, words

ENGINES = {"bleu": BLEU, "chrf": CHRF, "ter": TER}
OPTIONS = [
    ("bleu", {}),
    ("bleu", {"lowercase": True}),
    ("bleu", {"smooth_method": "floor"}),
    ("bleu", {"smooth_method": "add-k", "smooth_value": 2}),
    ("bleu", {"smooth_method": "none"}),
    ("bleu", {"max_ngram_order": 2}),
    *(("bleu", {"tokenize": name}) for name in ("intl", "zh", "char", "none")),
    ("chrf", {}),
    ("chrf", {"word_order": 2, "lowercase": True}),
    ("chrf", {"beta": 1, "whitespace": True, "char_order": 4}),
    ("chrf", {"eps_smoothing": True}),
    ("ter", {}),
    ("ter", {"normalized": True, "no_punct": True, "asian_support": True, "case_sensitive": True}),
]
sentence = st.lists(st.sampled_from(["a", "b", "c", "the", "B.", "d,"]), max_size=9).map(" ".join)
corpus = st.lists(st.tuples(sentence, st.lists(sentence, min_size=1, max_size=3)), min_size=1, max_size=6)


def value(name, predictions, references, figure=None, **options):
    return metrics.score({name: options}, predictions, references, resamples=0)[figure or name]["value"]


def streams(references):
    return [list(stream) for stream in itertools.zip_longest(*references)]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_bundled_data_equals_sacrebleu(name, options):
    predictions, references = noisy.translations()
    engine = ENGINES[name](**options)
    figure = metrics.score({name: options}, predictions, references, resamples=0)[name]
    assert figure["value"] == pytest.approx(engine.corpus_score(predictions, [references]).score, abs=1e-9)
    assert figure["signature"] == engine.get_signature().format()
    assert 5 < figure["value"] < 95


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@settings(max_examples=30, deadline=None)
@given(rows=corpus)
def test_random_rows_equal_sacrebleu(name, options, rows):
    predictions, references = map(list, zip(*rows, strict=True))
    expected = ENGINES[name](**options).corpus_score(predictions, streams(references)).score
    assert value(name, predictions, references, **options) == pytest.approx(expected, abs=1e-9)


EDGES = {
    "empty hypothesis": (["", "a b c d"], [["a b"], ["a b c d"]]),
    "all hypotheses empty": (["", ""], [["a b"], ["c"]]),
    "empty reference": (["a b", "c d"], [[""], ["c d"]]),
    "no match": (["x y z w v"], [["a b c d e"]]),
    "no match of length four": (["a b c x d"], [["a b c d x"]]),
    "one word": (["a"], [["a"]]),
    "one row": (["a b c d e f"], [["a b c d e g"]]),
    "identical rows": (["a b c d e"] * 7, [["a b c d f"]] * 7),
    "closest length": (["a b c d e"], [["a b c d e f g", "a b c d"]]),
    "equally close lengths": (["a b c d e"], [["a b c d e f", "a b c d"]]),
    "ragged references": (["a b c", "d e f g"], [["a b"], ["d e f", "e f g h", "g"]]),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
def test_edges_equal_sacrebleu(name, edge):
    predictions, references = EDGES[edge]
    expected = ENGINES[name]().corpus_score(predictions, streams(references)).score
    assert value(name, predictions, references) == pytest.approx(expected, abs=1e-9)


def test_counting_in_pieces_changes_nothing(monkeypatch):
    predictions, references = noisy.translations(limit=50)
    several = [[text, "x", text.lower()][: 1 + i % 3] for i, text in enumerate(references)]
    whole = metrics.score(["bleu", "chrf", "ter"], predictions, several, resamples=0)
    monkeypatch.setattr("hftune.metrics.sacre.CHUNK", 7)
    assert metrics.score(["bleu", "chrf", "ter"], predictions, several, resamples=0) == whole
    assert all("nrefs:var" in figure["signature"] for figure in whole.values())


def test_equals_the_sacrebleu_command_line(tmp_path):
    predictions, references = noisy.translations(limit=100)
    predictions[3] = ""
    second = [noisy.broken(text, random.Random(7)) or "x" for text in references]
    for name, lines in {"hyp": predictions, "one": references, "two": second}.items():
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "one", "two", "-i", "hyp", "-m", "bleu", "chrf", "ter", "-w", "12"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    found = metrics.score(["bleu", "chrf", "ter"], predictions, list(zip(references, second, strict=True)), resamples=0)
    for name, theirs in zip(("bleu", "chrf", "ter"), json.loads(printed), strict=True):
        assert found[name]["value"] == pytest.approx(theirs["score"], abs=1e-9)
        assert found[name]["signature"] == theirs["signature"]


def test_figures_that_sacrebleu_publishes_in_its_package():
    """Every example of its Python interface that the installed documentation prints with its input."""
    examples = re.findall(
        r"refs = \[(.*?)\n   \.\.\.:\s+\]\n.*?sys = (\[.*?\])\n(.*?)```", metadata("sacrebleu").get_payload(), re.DOTALL
    )
    assert len(examples) == 3
    seen = []
    for text, system, outputs in examples:
        references = [re.findall(r"'([^']*)'", line) for line in re.findall(r"\[.*\]", text)]
        predictions = re.findall(r"'([^']*)'|\"([^\"]*)\"", system)
        rows = [[one for one in row if one] for row in zip(*references, strict=True)]
        for name, published in re.findall(r"(BLEU|chrF2) = ([\d.]+)", outputs):
            ours = value({"BLEU": "bleu", "chrF2": "chrf"}[name], [a or b for a, b in predictions], rows)
            assert f"{ours:.2f}" == published
            seen.append(published)
    assert sorted(seen) == ["29.44", "48.53", "48.53", "59.73"]


def test_row_scores_equal_sentence_scores():
    predictions, references = noisy.translations(limit=60)
    found = metrics.row_scores(["bleu", "chrf", "ter"], predictions, references)
    for name, engine in {"bleu": BLEU(effective_order=True), "chrf": CHRF(), "ter": TER()}.items():
        expected = [engine.sentence_score(p, [r]).score for p, r in zip(predictions, references, strict=True)]
        assert found[name] == pytest.approx(expected, abs=1e-9)


def test_a_shuffled_reference_scores_under_ten():
    """Words shuffled within long rows, and rows exchanged; BLEU on characters does not notice the former."""
    rng = random.Random(0)
    references = [" ".join(re.findall(r"\w+", row["text"])) for row in tiny.lines("docs-topics", "test", 123)]
    shuffled = [" ".join(rng.sample(text.split(), len(text.split()))) for text in references]
    assert value("bleu", shuffled, references) < 10
    assert value("bleu", shuffled, references, tokenize="char") > 60
    for texts in (references, noisy.translations()[1], noisy.summaries()[1]):
        assert value("bleu", rng.sample(texts, len(texts)), texts) < 10


@pytest.mark.parametrize("lang", ["ja", "ko-KR"])
def test_a_tokenizer_whose_package_is_missing_says_what_to_install(lang, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'sacrebleu"):
        value("bleu", ["a"], ["a"], lang=lang)


def test_flores_uses_its_model_where_it_is_and_names_it_where_it_is_not(tmp_path, monkeypatch):
    import sacrebleu.tokenizers.tokenizer_spm
    import sacrebleu.utils
    import sentencepiece

    monkeypatch.setattr(sacrebleu.utils, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(sacrebleu.tokenizers.tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    predictions, references = noisy.translations(limit=100)
    with pytest.raises(UserError, match="models/flores200sacrebleuspm"):
        value("bleu", predictions, references, tokenize="flores200")
    (tmp_path / "models").mkdir()
    with (tmp_path / "models" / "flores200sacrebleuspm").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(references), model_writer=file, vocab_size=300, minloglevel=2
        )
    found = metrics.score({"bleu": {"tokenize": "flores200"}}, predictions, references, resamples=0)["bleu"]
    assert "tok:flores200" in found["signature"]
    assert found["value"] == pytest.approx(BLEU(tokenize="flores200").corpus_score(predictions, [references]).score)


def test_chinese_is_cut_into_characters():
    assert value("bleu", ["他们在哪里工作"], ["他们在哪儿工作"], lang="zh_CN") > 30
    assert value("bleu", ["他们在哪里工作"], ["他们在哪儿工作"]) == 0


# ── ROUGE ───────────────────────────────────────────────────────────────────────────────────────────────

KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def rouge_score(predictions, references, stem=False, measure="fmeasure"):
    scorer = RougeScorer(KINDS, use_stemmer=stem)
    rows = [scorer.score_multi(texts, text) for text, texts in zip(predictions, references, strict=True)]
    return {kind: sum(getattr(row[kind], measure) for row in rows) / len(rows) for kind in KINDS}


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize("measure", ["fmeasure", "precision", "recall"])
def test_bundled_data_equals_rouge_score(stem, measure):
    predictions, references = noisy.summaries()
    several = [[text, text.upper() + " x"] for text in references]
    options = {"stem": stem, "measure": measure, "tokenize": "ascii", "split_sentences": False}
    found = metrics.score({"rouge": options}, predictions, several, resamples=0)
    for kind, expected in rouge_score(predictions, several, stem, measure).items():
        assert found[kind]["value"] == pytest.approx(expected, abs=1e-9)


lines = st.text(st.characters(min_codepoint=10, max_codepoint=126, exclude_characters="\r"), max_size=60)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(lines, st.lists(lines, min_size=1, max_size=2)), min_size=1, max_size=4), st.booleans())
def test_ascii_rows_equal_rouge_score(rows, stem):
    predictions, references = map(list, zip(*rows, strict=True))
    options = {"stem": stem, "split_sentences": False}
    found = metrics.score({"rouge": options}, predictions, references, resamples=0)
    for kind, expected in rouge_score(predictions, references, stem).items():
        assert found[kind]["value"] == pytest.approx(expected, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=127)), st.booleans())
def test_ascii_words_are_those_of_rouge_score(text, stem):
    from nltk.stem.porter import PorterStemmer

    assert words(text, stem) == tokenize(text, PorterStemmer() if stem else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Über-Größe", ["über", "größe"]),
        ("u\u0308ber", ["über"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("中文 ok词", ["中", "文", "ok", "词"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("Привет, мир! ١٢", ["привет", "мир", "١٢"]),
        ("한국어 텍스트", ["한국어", "텍스트"]),
    ],
)
def test_words_of_other_scripts(text, expected):
    assert words(text) == expected


def test_rouge_of_a_script_that_rouge_score_cannot_read():
    text, other = "他们在图书馆工作", "他们在学校工作"
    assert rouge_score([text], [[text]])["rouge1"] == 0
    assert value("rouge", [text], [text], "rouge1") == 1
    assert value("rouge", [text], [other], "rouge1") == pytest.approx(2 * 5 / (8 + 7))


def test_sentences_are_found_where_the_text_has_no_lines():
    text = 'The first one. "A second?" Yes, e.g. this is the third! 这是。那是？'
    assert sentences(text) == ["The first one.", '"A second?"', "Yes, e.g. this is the third!", "这是。", "那是？"]
    assert sentences("one. Two\nthree. Four") == ["one. Two", "three. Four"]
    first, second = "The cat sat down.", "A dog ran off."
    lined = value("rouge", [f"{second}\n{first}"], [f"{first}\n{second}"], "rougeLsum")
    assert lined == 1 > value("rouge", [f"{second} {first}"], [f"{first} {second}"], "rougeL")
    assert value("rouge", [f"{second} {first}"], [f"{first} {second}"], "rougeLsum") == lined


def test_rouge_is_a_plain_mean_of_its_rows():
    predictions, references = noisy.summaries()
    rows = metrics.row_scores("rouge", predictions, references)
    found = metrics.score("rouge", predictions, references, resamples=0)
    assert all(found[kind]["value"] == pytest.approx(sum(rows[kind]) / len(rows[kind]), abs=1e-12) for kind in KINDS)


# ── others ──────────────────────────────────────────────────────────────────────────────────────────────


def test_exact_match():
    predictions, references = ["Yes", "no.", "maybe", "x"], ["yes", ["nope", "no"], "maybe", "y"]
    assert value("exact_match", predictions, references) == 0.25
    assert value("exact_match", predictions, references, ignore_case=True) == 0.5
    assert value("exact_match", predictions, references, ignore_case=True, ignore_punctuation=True) == 0.75


@pytest.mark.parametrize(
    ("given", "answers", "exact", "f1"),
    [
        ("the Eiffel Tower!", ["Eiffel tower"], 100, 100),
        ("Eiffel", ["London", "Eiffel Tower"], 0, 200 / 3),
        ("", [], 100, 100),
        ("something", [], 0, 0),
        ("", ["an answer"], 0, 0),
        ("the", [""], 100, 100),
        ("b b c", ["b c c"], 0, 200 / 3),
    ],
)
def test_squad(given, answers, exact, f1):
    assert value("squad", [given], [answers], "squad_exact_match") == exact
    assert value("squad", [given], [answers], "squad_f1") == pytest.approx(f1)


@settings(max_examples=50, deadline=None)
@given(st.lists(sentence, min_size=1, max_size=6))
def test_distinct_counts_kinds_over_all_rows(texts):
    found = metrics.score("distinct", texts, resamples=0)
    rows = [words(text) for text in texts]
    for n in (1, 2, 3):
        grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
        assert found[f"distinct{n}"]["value"] == (pytest.approx(len(set(grams)) / len(grams)) if grams else None)
    repeated = [
        1 - len(Counter(fours)) / len(fours)
        for row in rows
        if (fours := list(zip(row, row[1:], row[2:], row[3:], strict=False)))
    ]
    assert found["repetition"]["value"] == (pytest.approx(sum(repeated) / len(repeated)) if repeated else None)


def test_distinct_does_not_depend_on_what_another_system_wrote():
    systems = {"a": ["x y z", "x y"], "b": ["x y z", "x y"]}
    found = metrics.compare("distinct", systems, trials=10, resamples=10)["distinct1"]["systems"]
    assert found["a"]["value"] == found["b"]["value"] == 3 / 5


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random BERT of two layers with a tokenizer of its own."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    trainer = BertWordPieceTokenizer()
    trainer.train_from_iterator(noisy.summaries()[1], vocab_size=400, show_progress=False)
    trainer.save_model(str(folder))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=40).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = tiny.SIZES["bert"]
    model = BertModel(BertConfig(vocab_size=400, max_position_embeddings=40, **sizes))
    for weights in model.parameters():
        weights.data *= 3  # the usual start makes all embeddings alike
    model.save_pretrained(folder)
    return str(folder)


def test_bertscore_equals_its_definition(encoder):
    import torch
    from transformers import AutoModel, AutoTokenizer

    predictions, references = noisy.summaries(limit=20)
    predictions[3] = ""
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    def vectors(text):
        with torch.no_grad():
            batch = tokenizer(text, return_tensors="pt", truncation=True)
            hidden = model(**batch, output_hidden_states=True).hidden_states[1][0]
        return hidden / hidden.norm(dim=1, keepdim=True)

    expected = []
    for prediction, reference in zip(predictions, references, strict=True):
        near = vectors(prediction) @ vectors(reference).T
        p = near.max(1).values[1:-1].mean() if prediction else torch.tensor(0.0)
        r = near.max(0).values[1:-1].mean() if prediction else torch.tensor(0.0)
        expected.append(float(2 * p * r / (p + r)) if prediction else 0.0)
    found = metrics.row_scores({"bertscore": {"model": encoder, "layer": 1}}, predictions, references)["bertscore"]
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in found}) > 10
    best = metrics.row_scores(
        {"bertscore": {"model": encoder}}, predictions[4:], [["x", one] for one in predictions[4:]]
    )
    assert best["bertscore"] == pytest.approx([1.0] * 16, abs=1e-5)


def test_bertscore_of_a_model_in_half_precision_is_computed_in_float32(encoder, tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    predictions, references = (texts[:8] for texts in noisy.summaries())
    model, found = AutoModel.from_pretrained(encoder), []
    for name, kind in (("half", torch.bfloat16), ("whole", torch.float32)):
        model.to(kind).save_pretrained(tmp_path / name)  # the same numbers
        AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / name)
        found.append(metrics.row_scores({"bertscore": {"model": str(tmp_path / name)}}, predictions, references))
    assert found[0] == found[1]


def test_bertscore_reads_no_pickle(encoder, tmp_path):
    import shutil

    import torch
    from safetensors.torch import load_file

    shutil.copytree(encoder, tmp_path / "pickled")
    weights = tmp_path / "pickled" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UserError, match=r"cannot load .*safetensors"):
        value("bertscore", ["a"], ["a"], model=str(tmp_path / "pickled"))


def test_bertscore_downloads_nothing():
    with pytest.raises(UserError, match="no folder of a model"):
        value("bertscore", ["a"], ["a"], model="roberta-large")


@pytest.mark.slow
def test_a_hundred_thousand_rows_equal_sacrebleu_and_rouge_score():
    rng = random.Random(0)
    base = [row["translation"]["fr"] for row in tiny.lines("translation-ui-en-fr", "train", 10_000)]
    references = [rng.choice(base) for _ in range(100_000)]
    predictions = [noisy.broken(text, rng) for text in references]
    found = metrics.score(
        {"bleu": {}, "chrf": {}, "ter": {}, "rouge": {"tokenize": "ascii", "split_sentences": False}},
        predictions,
        references,
    )
    assert found["bleu"]["value"] == pytest.approx(BLEU().corpus_score(predictions, [references]).score, abs=1e-9)
    assert found["chrf"]["value"] == pytest.approx(CHRF().corpus_score(predictions, [references]).score, abs=1e-9)
    assert found["ter"]["value"] == pytest.approx(TER().corpus_score(predictions, [references]).score, abs=1e-9)
    for kind, expected in rouge_score(predictions, [[text] for text in references]).items():
        assert found[kind]["value"] == pytest.approx(expected, abs=1e-9)
    assert all(figure["low"] < figure["value"] < figure["high"] for figure in found.values())
