"""The figures that sacrebleu 2.6.0 tests itself by.

Its wheel carries the examples of its README (see test_text_metrics); its source distribution carries its tests, whose
short inputs are here with their figures. The long ones are read from that distribution, unpacked where SACREBLEU_SDIST
says: `pip download --no-deps --no-binary sacrebleu sacrebleu==2.6.0`.
"""

import ast
import bz2
import importlib.util
import os
import pickle
import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

from hftune import metrics

SDIST = os.environ.get("SACREBLEU_SDIST")
CHRF3 = {"beta": 3, "eps_smoothing": True}


def value(name, predictions, references, **options):
    return metrics.score({name: options}, predictions, references, resamples=0)[name]["value"]


def readme_example():
    """The three hypotheses and two references of the README, which the tests use too."""
    text = metadata("sacrebleu").get_payload()
    streams, system = re.search(r"refs = \[(.*?)\n   \.\.\.:\s+\]\n.*?sys = (\[.*?\])\n", text, re.DOTALL).groups()
    references = [ast.literal_eval(line.rstrip(",")) for line in re.findall(r"\[.*\],?", streams)]
    return ast.literal_eval(system), [list(row) for row in zip(*references, strict=True)]


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({}, 48.530827),
        ({"tokenize": "none"}, 49.1919566),
        ({"tokenize": "13a"}, 48.530827),
        ({"tokenize": "intl"}, 43.91623493),
        ({"smooth_method": "none"}, 48.530827),
    ],
)
def test_bleu_of_the_readme_example(options, published):
    assert value("bleu", *readme_example(), **options) == pytest.approx(published, abs=1e-8, rel=1e-8)
    assert value("bleu", ["", "", ""], readme_example()[1]) == 0


@pytest.mark.parametrize(
    ("order", "published"), enumerate(["77.65", "60.50", "53.93", "48.53", "46.14", "43.28"], start=1)
)
def test_bleu_by_longest_n_gram(order, published):
    assert f"{value('bleu', *readme_example(), max_ngram_order=order):.2f}" == published


@pytest.mark.parametrize(
    ("hypotheses", "references", "published"),
    [
        (["this is a test", "another test"], ["ref1", "ref2"], 0.0),
        (["this is a test"], ["this is a test"], 1.0),
        (["this is a fest"], ["this is a test"], 0.223606797749979),
    ],
)
def test_bleu_with_a_floor(hypotheses, references, published):
    options = {"tokenize": "none", "smooth_method": "floor", "smooth_value": 0.01}
    found = value("bleu", hypotheses, references, **options)
    assert found / 100 == pytest.approx(published, abs=1e-8)


@pytest.mark.parametrize(
    ("hypothesis", "reference", "published"),
    [
        ("test", "a test", 0.3678794411714425),
        ("a test", "a test", 1.0),
        ("a little test", "a test", 0.03218297948685433),
    ],
)
def test_bleu_of_one_row_with_effective_order(hypothesis, reference, published):
    options = {"tokenize": "none", "smooth_method": "floor", "smooth_value": 0.01}
    (found,) = metrics.row_scores({"bleu": options}, [hypothesis], [reference])["bleu"]
    assert found / 100 == pytest.approx(published, abs=1e-8)


def test_bleu_with_the_floor_that_is_the_default():
    pair = ["am I am a character sequence"], ["I am a symbol string sequence a a"]
    options = {"tokenize": "none", "smooth_method": "floor"}
    assert value("bleu", *pair, **options) / 100 == pytest.approx(0.1555722182, abs=1e-8)
    assert value("bleu", *pair, **options, smooth_value=0.0) == 0
    statistics = metrics.load("bleu", **options).statistics(*pair)[0].tolist()
    assert statistics[2:] == [4, 2, 1, 0, 6, 5, 4, 3]


@pytest.mark.parametrize(
    ("matches", "ngrams", "lengths", "smooth", "published"),
    [
        ([9, 7, 5, 3], [10, 8, 6, 4], (11, 11), ("exp", None), 0.8375922397),
        ([0, 0, 0, 0], [4, 4, 2, 1], (0, 1), ("floor", 0.0), 0.0),
        ([0, 0, 0, 0], [10, 11, 12, 0], (14, 10), ("floor", 0.0), 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], (0, 0), ("floor", 0.0), 0.0),
        ([6, 5, 4, 0], [6, 5, 4, 3], (6, 6), ("floor", 0.0), 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], (0, 0), ("floor", 0.1), 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], (1, 5), ("floor", 0.01), 0.0),
    ],
)
def test_bleu_of_given_counts(matches, ngrams, lengths, smooth, published):
    import numpy as np

    metric = metrics.load("bleu", **dict(zip(("smooth_method", "smooth_value"), smooth, strict=True)))
    (found,) = metric.figures(np.array([[*lengths, *matches, *ngrams]], dtype=float))["bleu"]
    assert found / 100 == pytest.approx(published, abs=1e-8)


@pytest.mark.parametrize("smooth", [("exp", None), ("none", None), ("floor", None), ("floor", 0.1), ("add-k", 1)])
def test_bleu_of_a_row_without_a_match_is_zero(smooth):
    options = {key: one for key, one in zip(("smooth_method", "smooth_value"), smooth, strict=True) if one is not None}
    (found,) = metrics.row_scores({"bleu": options}, ["this is a cat"], ["okay thanks"])["bleu"]
    assert found == 0


@pytest.mark.parametrize(
    ("hypotheses", "references", "options", "published"),
    [
        (["abcdefg"], ["hijklmnop"], CHRF3, 0.0),
        (["a"], ["b"], CHRF3, 0.0),
        ([""], ["b"], CHRF3, 0.0),
        ([""], ["reference"], CHRF3, 0.0),
        (["aa"], ["ab"], CHRF3, 8.3333),
        (["a", "b"], ["a", "c"], CHRF3, 8.3333),
        (["a"], ["a"], CHRF3, 16.6667),
        (["a b c"], ["a b c"], CHRF3, 50.0),
        (["a b c"], ["abc"], CHRF3, 50.0),
        (["a"], ["a"], {"beta": 3}, 100.0),
        ([""], ["reference"], {"beta": 3}, 0.0),
        (["a b c"], ["a b c"], {"beta": 3}, 100.0),
        (["a b c"], ["abc"], {"beta": 3}, 100.0),
        (["a", "b"], ["a", "c"], {"beta": 3}, 50.0),
        (["aa"], ["ab"], {"beta": 3}, 25.0),
    ],
)
def test_chrf(hypotheses, references, options, published):
    assert value("chrf", hypotheses, references, **options) == pytest.approx(published, abs=1e-4)


@pytest.mark.parametrize(
    ("hypothesis", "reference", "published"),
    [
        ("aaaa bbbb cccc dddd", "aaaa bbbb cccc dddd", 0),
        ("dddd eeee ffff", "aaaa bbbb cccc", 1),
        ("", "a", 1),
        ("a", "", 1),
        ("", "", 0),
        ("d e f g h a b c", "a b c d e f g h", 1 / 8),
    ],
)
def test_ter(hypothesis, reference, published):
    assert value("ter", [hypothesis], [reference]) == pytest.approx(100 * published, abs=1e-3)


# ── the whole of its tests, where they are at hand ──────────────────────────────────────────────────────

at_hand = [pytest.mark.slow, pytest.mark.skipif(SDIST is None, reason="SACREBLEU_SDIST is not set")]


def its_test(name):
    """A test file of sacrebleu as a module: its cases are lists at the top."""
    path = Path(SDIST or "") / "test" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestDistribution:
    pytestmark = at_hand

    def test_chrf(self):
        cases = its_test("test_chrf")
        for rows, options in (
            (cases.test_cases, CHRF3),
            (cases.test_cases_effective_order, {"beta": 3}),
            (cases.test_cases_keep_whitespace, {"beta": 3, "whitespace": True}),
        ):
            for hypotheses, references, published in rows:
                assert value("chrf", hypotheses, references, **options) == pytest.approx(published, abs=1e-4)
        for hypothesis, references, published in cases.test_sentence_level_chrf:
            found = metrics.row_scores({"chrf": {"eps_smoothing": True}}, [hypothesis], [references])["chrf"]
            assert found == pytest.approx([published], abs=1e-4)

    def test_ter(self):
        for hypotheses, references, published in its_test("test_ter").test_cases:
            assert value("ter", hypotheses, references) == pytest.approx(100 * published, abs=1e-3)

    def test_sentence_bleu(self):
        cases = its_test("test_sentence_bleu")
        for (hypothesis, reference), rows in (
            ((cases.SYS, cases.REF), cases.test_cases),
            ((cases.SYS_0, cases.REF_0), cases.test_cases_zero_bleu),
        ):
            for method, smooth_value, lowercase, tokenize, published in rows:
                options = {"smooth_method": method, "lowercase": lowercase, "tokenize": tokenize}
                options |= {} if smooth_value is None else {"smooth_value": smooth_value}
                (found,) = metrics.row_scores({"bleu": options}, [hypothesis], [reference])["bleu"]
                assert found == pytest.approx(published, abs=1e-3)

    def test_p_values(self):
        """Those of Moses (bootstrap) and of multeval (randomisation) on WMT17's systems, as near as sacrebleu's own."""
        folder = Path(SDIST or "") / "test"
        text = (folder / "test_significance.py").read_text(encoding="utf-8")
        moses, multeval = (ast.literal_eval(found) for found in re.findall(r"_P_VALS = (\{.*?\n\})", text, re.DOTALL))
        systems = pickle.loads(bz2.decompress((folder / "wmt17_en_de_systems.pkl.bz2").read_bytes()))
        _, streams = systems.pop()
        references = [list(row) for row in zip(*streams, strict=True)]
        options = {"bleu": {"tokenize": "none"}}
        found = metrics.compare(options, dict(systems), references, resamples=2000, trials=10_000)["bleu"]["systems"]
        for name, published in moses.items():
            assert found[name]["p_bootstrap"] == pytest.approx(published, abs=1e-2)
        for name, (published, _) in multeval.items():
            assert found[name]["p_randomization"] == pytest.approx(published, abs=1e-2)
