"""`hftune eval` beyond a run's own test rows: plain models, several sets, Hub ids, ranks, wrong words."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import children
import fine
import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

from hftune import byrow, card, cli, evaluation, folder, leaks, metrics, models, recipe, subject, tokenizer
from hftune import task as tasks
from hftune.errors import UserError
from hftune.report import Reporter
from hftune.schema import Eval, Model

LABELS = ("positive", "neutral", "negative")  # not in the order in which the rows' own would be sorted
ID2LABEL = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
MARIAN = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
MARIAN |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
EN_DE = ("data.columns.source=translation.en", "data.columns.target=translation.de")


def plain(folder, kind, head, settings=None, architecture=None, size=None):
    """A model folder as save_pretrained writes it, of new weights."""
    tok = fine.tok(kind)
    source = Model(init=architecture or kind, config=size or fine.SMALL[kind])
    models.build(source, head, tok, settings=settings or {}, seed=3).model.save_pretrained(folder)
    tokenizer.save(tok, folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    plain(folder / "gpt", "gpt2", "AutoModelForCausalLM")
    plain(folder / "classifier", "bert", "AutoModelForSequenceClassification", ID2LABEL)
    plain(folder / "marian", "t5", "AutoModelForSeq2SeqLM", architecture="marian", size=MARIAN)
    tweets = tiny.lines("sentiment-tweets", limit=60)
    tiny.write_rows(folder / "train.jsonl", tweets[:32])
    tiny.write_rows(folder / "a.jsonl", tweets[30:47])
    tiny.write_rows(folder / "b.jsonl", tweets[47:])
    tiny.write_rows(folder / "numbers.jsonl", [{**row, "label": i % 3} for i, row in enumerate(tweets[47:])])
    tiny.write_rows(folder / "de.jsonl", tiny.lines("translation-ui-en-de", limit=15))
    tiny.corpus(folder)
    return folder


@pytest.fixture(scope="module")
def run(place):
    """A run of the task classify."""
    source = tiny.classify(place, str(place / "classifier"), max_steps=2)
    source["data"] |= {"train": str(place / "train.jsonl"), "test": str(place / "a.jsonl")}
    children.train(source)
    return place / "run"


def told(*words):
    """Standard output of `hftune eval`."""
    found = CliRunner().invoke(cli.app, ["eval", *map(str, words)], catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout


def figures(*words):
    return json.loads(told(*words, "--json"))


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_plain_causal_model_is_measured_and_left_as_it_is(place):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = content(place / "gpt")
    found = figures(place / "gpt", "--task", "clm", "--data", place / "text.jsonl", "--batch-tokens", 300)
    assert content(place / "gpt") == before
    model, tok = (kind.from_pretrained(place / "gpt") for kind in (AutoModelForCausalLM, AutoTokenizer))
    nll = count = 0.0
    for line in evaluation.read_lines(place / "text.jsonl"):
        ids = torch.tensor([[tok.bos_token_id, *tok(line["text"])["input_ids"], tok.eos_token_id]])
        with torch.no_grad():
            log = model(ids[:, :-1]).logits.double().log_softmax(-1)
        nll -= float(log.gather(-1, ids[:, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert found["loss"]["value"] == pytest.approx(nll / count, abs=1e-6)
    assert found["loss"]["count"] in (count, found["perplexity"]["count"])


def test_a_plain_classifier_names_its_labels_itself(place, tmp_path):
    from transformers import pipeline

    out = tmp_path / "out"
    found = figures(place / "classifier", "--task", "classify", "--data", place / "a.jsonl", "--output", out)
    rows = list(evaluation.read_lines(place / "a.jsonl"))
    own = pipeline("text-classification", str(place / "classifier"))
    answers = [own(row["text"])[0]["label"] for row in rows]
    lines = list(evaluation.read_lines(out / "predictions" / "test.jsonl"))
    assert [line["prediction"] for line in lines] == answers
    right = [answer == row["label"] for answer, row in zip(answers, rows, strict=True)]
    assert [line["score"] for line in lines] == [{"accuracy": float(one)} for one in right]
    assert found["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
    assert json.loads((out / "metrics.json").read_text()) == found
    # the recipe beside the results gives them again, now by --recipe, in the same folder
    again = figures(place / "classifier", "--recipe", out / "recipe.yaml", "--output", out)
    assert again == found


def test_labels_without_names_are_numbers(place, tmp_path):
    plain(tmp_path / "bare", "bert", "AutoModelForSequenceClassification", {"num_labels": 3})
    found = figures(tmp_path / "bare", "--task", "classify", "--data", place / "numbers.jsonl")
    assert found["accuracy"]["count"] == 13


def test_a_model_knows_the_order_of_its_labels_better_than_a_recipe(place):
    words = (place / "classifier", "--task", "classify", "--data", place / "a.jsonl", "eval.resamples=0")
    found = figures(*words)
    assert list(LABELS) != sorted(LABELS)
    same, others = (f"task.label_names={json.dumps(names)}" for names in (sorted(LABELS), ["x", *LABELS[1:]]))
    assert figures(*words, same) == found
    warning = "calls its labels positive, neutral, negative; in this order they are taken for x, neutral, negative"
    (place / "x.jsonl").write_text((place / "a.jsonl").read_text().replace('"label": "positive"', '"label": "x"'))
    for label_names, rows, said in ((same, "a.jsonl", False), (others, "x.jsonl", True)):
        shown = told(
            place / "classifier", "--task", "classify", "--data", place / rows, label_names, "eval.resamples=0"
        )
        assert (warning in shown) == said


def test_decoding_is_said_on_the_command_line(place, tmp_path):
    words = (place / "marian", "--task", "translate", "--data", place / "de.jsonl", *EN_DE, "eval.resamples=0")
    found = {}
    for name, more in (("options", ("--max-new-tokens", 3, "--num-beams", 2)), ("long", ("task.max_new_tokens=9",))):
        figures(*words, *more, "--output", tmp_path / name)
        found[name] = list(evaluation.read_lines(tmp_path / name / "predictions" / "test.jsonl"))
    tok = fine.tok("t5")
    assert all(0 < len(tok(line["prediction"])["input_ids"]) <= 4 for line in found["options"]), "three and the end"
    assert any(len(tok(line["prediction"])["input_ids"]) > 5 for line in found["long"])
    asked = recipe.load(tmp_path / "options" / "recipe.yaml").task.options
    assert (asked.num_beams, asked.max_new_tokens) == (2, 3)
    sources = [row["translation"]["en"] for row in evaluation.read_lines(place / "de.jsonl")]
    assert [line["source"] for line in found["long"]] == sources


def test_copying_needs_no_training_rows_and_stands_beside_the_figure(place):
    words = (place / "marian", "--task", "translate", "--data", place / "de.jsonl", *EN_DE, "--max-new-tokens", 4)
    shown = told(*words, "--baseline", "--metric", "chrf")
    assert "baseline: The source, copied." in shown
    assert "  baseline " in next(line for line in shown.splitlines() if line.startswith("chrf"))
    with pytest.raises(UserError, match="needs the training rows"):
        told(place / "gpt", "--task", "clm", "--data", place / "text.jsonl", "--baseline")


def test_several_sets_each_have_figures_and_predictions(run, place, tmp_path):
    one, out = figures(run), tmp_path / "out"
    sets = ("--data", f"first={place / 'a.jsonl'}", "--data", f"second={place / 'b.jsonl'}")
    both = figures(run, *sets, "--output", out)
    assert json.loads((out / "metrics.json").read_text()) == both
    assert {name.partition("/")[0] for name in both} == {"first", "second"}
    assert all({**both[f"first/{name}"], "split": "test"} == figure for name, figure in one.items())
    assert len(list(evaluation.read_lines(out / "predictions" / "second.jsonl"))) == 13
    figures(run, "--data", f"first={place / 'a.jsonl'}", "--output", out)
    assert [path.name for path in (out / "predictions").iterdir()] == ["first.jsonl"], "nothing of an evaluation before"


def test_a_plain_model_is_talked_to_by_the_recipes_template(place, tmp_path):
    talk = [{"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "yes"}]}] * 3
    data = tiny.write_rows(tmp_path / "talk.jsonl", talk)
    template = "{% for m in messages %}{{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant {% endif %}"
    source = tiny.mlm(tmp_path) | {"task": {"name": "clm", "kind": "chat", "max_new_tokens": 4}}
    source |= {"model": {"path": str(place / "gpt")}, "tokenizer": {"chat_template": template}}
    source["data"] = {"train": str(data), "test": str(data), "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "chat.yaml").write_text(recipe.dump(recipe.from_dict(source)), encoding="utf-8")
    found = figures(place / "gpt", "--recipe", tmp_path / "chat.yaml", "eval.resamples=0", "--output", tmp_path / "out")
    assert found["exact_match"]["count"] == 3
    line = next(evaluation.read_lines(tmp_path / "out" / "predictions" / "test.jsonl"))
    assert line["prompt"] == f"user ask{fine.tok('gpt2').eos_token}assistant "
    words = (
        place / "gpt",
        "--task",
        "clm",
        "--data",
        data,
        "task.kind=chat",
        "task.max_new_tokens=4",
        "eval.resamples=0",
    )
    with pytest.raises(UserError, match="no chat template"):
        figures(*words)
    assert figures(*words, f"tokenizer.chat_template={json.dumps(template)}") == found


def test_the_card_holds_what_was_measured(run, place):
    from huggingface_hub import ModelCard

    tests = {"a.jsonl": (), "b.jsonl": (f"data.test={place / 'b.jsonl'}",)}
    sets = [("test", name, words) for name, words in tests.items()] + [
        ("validation", "held.jsonl", ("--split", "validation"))
    ]
    for split, name, words in sets:
        found = figures(run, *words, "eval.resamples=0")
        card = ModelCard.load(run / "README.md")
        held = {one.metric_type: one.metric_value for one in card.data.eval_results}
        assert held == {name: figure["value"] for name, figure in found.items() if "[" not in name}
        assert {(one.dataset_split, one.dataset_name) for one in card.data.eval_results} == {(split, str(place / name))}
        rows = [line for line in card.text.splitlines() if line.startswith("| accuracy")]
        assert [line.split(" | ")[-1] for line in rows] == [f"{split} |"]
        assert (run / "recipe.yaml").read_text() in (run / "README.md").read_text(), "as it ran, not as overridden"


def test_a_floor_is_no_result_of_the_model(tmp_path):
    """What xz needs for the text stood among the results that the Hub shows of a language model."""
    from huggingface_hub import ModelCard

    made = recipe.from_dict(tiny.mlm(tmp_path))
    (tmp_path / "recipe.yaml").write_text(recipe.dump(made), encoding="utf-8")
    own = {"value": 1.5, "count": 9, "split": "test"}
    floor = {"value": 2.5, "count": 9, "split": "test", "note": "xz -9 on the same text"}
    (tmp_path / "metrics.json").write_text(json.dumps({"bits_per_byte": own, "xz_bits_per_byte": floor}))
    card.write(tmp_path, made, "bert", {})
    found = ModelCard.load(tmp_path / "README.md")
    assert [one.metric_type for one in found.data.eval_results] == ["bits_per_byte"]
    assert "xz -9 on the same text | 2.5000 |" in found.text


@pytest.mark.parametrize(("path", "named"), [("runs/bert", None), ("./bert", None), ("owner/bert", "owner/bert")])
def test_the_card_names_a_base_model_of_the_hub_alone(path, named, tmp_path, monkeypatch):
    """Also where it is written anew from another folder than the run was started in."""
    from huggingface_hub import ModelCard

    (tmp_path / "home" / "runs" / "bert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    made = recipe.from_dict(tiny.mlm(tmp_path) | {"model": {"path": path}, "tokenizer": {}})
    (tmp_path / "recipe.yaml").write_text(recipe.dump(made), encoding="utf-8")
    card.write(tmp_path, made, "bert", {"directory": str(tmp_path / "home")})
    assert ModelCard.load(tmp_path / "README.md").data.base_model == named


@pytest.mark.parametrize(("commits", "named"), [({"gpt2": "1" * 40}, "gpt2"), ({}, None)])
def test_the_card_of_the_working_folder_has_a_title_and_the_base_that_the_run_took(
    commits, named, tmp_path, monkeypatch
):
    """Ids of the Hub without an owner too; what was a folder then is none of the Hub's, gone or not."""
    from huggingface_hub import metadata_load

    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    made = recipe.from_dict(tiny.mlm(tmp_path) | {"model": {"path": "gpt2"}, "tokenizer": {}})
    Path("recipe.yaml").write_text(recipe.dump(made), encoding="utf-8")
    Path("metrics.json").write_text('{"loss": {"value": 1.0, "split": "test"}}', encoding="utf-8")
    card.write(Path("."), made, "gpt2", {"commits": commits})
    found = metadata_load("README.md")
    assert (found["model-index"][0]["name"], found.get("base_model")) == ("mine", named)
    assert "\n# mine\n" in Path("README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words",
    [
        ("--limit", "3"), ("eval.limit=3",), ("--split", "train"), ("--data", "{p}/b.jsonl"), ("--data", "x={p}/b.jsonl"),
        ("--metric", "matthews"), ("--metric", "f1"), ("eval.metrics=[]",), ("task.max_length=24",), ("train.precision=fp32",),
    ],
    ids=str,
)  # fmt: skip
def test_figures_of_other_rows_or_settings_do_not_replace_those_that_a_run_shares(words, run, place):
    """Neither a part, nor rows that it has learned from, nor those of another file, nor some figures alone."""
    figures(run)
    before = content(run)
    shown = told(run, *(word.format(p=place) for word in words))
    assert f"not kept: {run} holds figures of its whole test or validation set, by its own settings" in shown
    assert content(run) == before


@pytest.mark.parametrize(
    "words",
    [("--metric", "matthews", "--metric", "f1", "-m", "accuracy"), ("--batch-tokens", 99), ("eval.confidence=0.9",), ("train.matmul=auto",)],
    ids=str,
)  # fmt: skip
def test_further_figures_stand_beside_those_that_a_run_shares(words, run):
    before = figures(run)
    assert "not kept" not in told(run, *words)
    assert json.loads((run / "metrics.json").read_text()).keys() >= before.keys()


def test_intervals_have_the_confidence_that_was_asked_for_if_any_were(run, place, tmp_path):
    """Of losses, of answers and of documents; a baseline's too."""
    for asked in (
        (run, "--baseline"),
        (place / "gpt", "--task", "clm", "--data", place / "text.jsonl", "task.max_length=40"),
    ):
        found = {}
        for confidence in (0.95, 0.5):
            words = (*asked, "--output", tmp_path / str(confidence), f"eval.confidence={confidence}")
            for name, figure in figures(*words).items():
                for part in (figure, figure.get("baseline", {})):
                    if part.get("low") is not None:
                        found.setdefault(name, []).append(part["high"] - part["low"])
        without = figures(*asked, "--output", tmp_path / "none", "eval.resamples=0")
        assert all(figure.get("low") is None for figure in without.values())
        assert {"loss", "accuracy" if asked[0] == run else "bits_per_byte"} <= found.keys()
        for name, widths in found.items():
            half = len(widths) // 2
            assert all(0 <= few <= 0.6 * many for many, few in zip(widths[:half], widths[half:], strict=True)), name


def test_the_whole_set_of_a_run_that_looks_at_a_part_is_that_part(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    limited = recipe.dump(recipe.load(run / "recipe.yaml", ["eval.limit=5"]))
    (tmp_path / "run" / "recipe.yaml").write_text(limited, encoding="utf-8")
    for words, count in (((), 5), (("eval.limit=null",), 17)):
        shown = told(tmp_path / "run", *words)
        assert "not kept" not in shown
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy"]["count"] == count
    assert "not kept" in told(tmp_path / "run", "--limit", 4)


def test_a_person_sees_the_ends_and_what_leaked(run):
    shown = told(run)
    worst, best = shown.index("worst rows by accuracy:"), shown.index("best rows by accuracy:")
    assert worst < best
    assert "wanted" in shown[worst:best]
    assert "test rows that occur in training: 2 of 17 exactly" in shown
    assert "worst" not in told(run, "--json")


def test_a_run_is_measured_with_the_kernels_that_it_trained_with(run):
    import torch

    state = json.loads((run / "run.json").read_text())
    for kept in ("flash", "math"):
        (run / "run.json").write_text(json.dumps({**state, "attention": kept}))
        told(run, "eval.resamples=0")
        assert torch.backends.cuda.flash_sdp_enabled() == (kept == "flash")
    (run / "run.json").write_text(json.dumps(state))


def test_what_is_shown_of_a_row_obeys_nothing(tmp_path, capsys):
    evil = "\x1b[2J[bold]x\u202e\n" + "y" * 500
    rows = [{"text": evil, "prediction": evil, "reference": "a", "score": {"chrf": float(i)}} for i in range(9)]
    byrow.show(tiny.write_rows(tmp_path / "rows.jsonl", rows), Reporter())
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[bold]" in shown
    assert len(shown.splitlines()) == 8
    assert max(map(len, shown.splitlines())) < 250


def test_a_row_of_words_is_shown_with_them(tmp_path, capsys):
    rows = [
        {"tokens": ["12", place], "prediction": ["B", "O"], "reference": ["B", "B"], "score": {"entity_f1": score}}
        for place, score in (("Oslo", 0.5), ("Bergen", 1.0))
    ]
    byrow.show(tiny.write_rows(tmp_path / "rows.jsonl", rows), Reporter())
    shown = capsys.readouterr().out
    assert "0.5  '12 Oslo'  →" in shown
    assert "1  '12 Bergen'  →" in shown


@pytest.mark.parametrize(
    "name", ["accuracy", "f1:average=micro", "entity_f1[a:b]", "entity_f1:scheme=IOB2[PER]", "entity_f1[PER]"]
)
@pytest.mark.parametrize("names", ["ab", None], ids=["of labels", "of choices"])
def test_the_ends_are_ordered_by_figure_then_surety_then_place(names, name, tmp_path, capsys):
    rows = [
        {
            "text": f"row {i}",
            "prediction": "a",
            "reference": "b",
            "scores": dict(zip(names, (p, 1 - p), strict=True)) if names else [1 - p, p],
            "score": {name: s},
        }
        for i, (s, p) in enumerate([(0, 0.6), (0, 0.9), (1, 0.7), (1, 0.8), (0, 0.9), (1, 0.8)])
    ]
    byrow.show(tiny.write_rows(tmp_path / "rows.jsonl", rows), Reporter())
    shown = [line.split("'")[1] for line in capsys.readouterr().out.splitlines() if "'" in line]
    assert shown == ["row 1", "row 4", "row 0", "row 3", "row 5", "row 2"]


def test_a_figure_that_was_asked_for_is_shown_even_if_it_is_undefined_or_of_one_class(capsys):
    sides = ["a", "b"], ["a", "a"]
    Reporter().figures("set", metrics.score(["f1[a]", "f1[z]", "accuracy"], *sides))
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert list(shown) == ["f1[a]", "f1[z]", "accuracy"]
    assert shown["f1[a]"][0] == "0.6667"
    assert " ".join(shown["f1[z]"]).startswith("undefined: no row has this label")
    tiny_ones = {"mse": {"value": 1.25e-7, "low": 0.0, "high": 0.5, "baseline": {"value": 2e-6}}}
    Reporter().figures("set", tiny_ones)
    assert "mse   1.25e-07  [0.0000, 0.5000]  baseline 2e-06" in capsys.readouterr().out
    Reporter().figures("set", {"perplexity": {"value": 1.25e31, "low": 1234567.25, "high": 2.5e300}})
    assert "perplexity   1.25e+31  [1234567.2500, 2.5e+300]" in capsys.readouterr().out
    entry = {"step": 1, "loss": 1.25e-7, "tokens_per_second": 9.0, "padding_fraction": 0.0}
    Reporter().step(entry, 1)
    assert capsys.readouterr().out.startswith("step 1/1  loss 1.25e-07  ")
    Reporter().figures("set", metrics.score("f1", *sides))
    assert "[a]" not in capsys.readouterr().out, "not asked for"


def test_nothing_is_cut_or_wrapped_where_there_is_no_terminal_and_no_text_becomes_a_picture(capsys):
    names = [f"runs/{'of-many-words-' * 9}{end}" for end in ("one:cat:", "two")]
    Reporter().table("title", [(name, "1.0000  " * 9) for name in names])
    Reporter().say("a :smile: b")
    _, *rows, said = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == names
    assert said == "a :smile: b"


def test_colours_that_are_forced_make_no_terminal_of_a_file(capsys, monkeypatch):
    """As where tests run by themselves: the live line was drawn four times a second, and names were folded at 80 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    entry = {"step": 1, "loss": 0.5, "tokens_per_second": 9.0, "padding_fraction": 0.0}
    reporter = Reporter()
    reporter.begin(1)
    reporter.step(entry, 1)
    reporter.end()
    reporter.table("title", [("name" * 40, "1.0000")])
    reporter.warn("a")
    step, _, name, warning = capsys.readouterr().out.splitlines()
    assert (step.split("  ")[0], name.split()[0]) == ("step 1/1", "name" * 40)
    assert warning == "\x1b[33mwarning:\x1b[0m a"


def test_a_terminal_without_a_live_line_gets_plain_ones(monkeypatch):
    """Such as Emacs's: a run said nothing of its steps."""
    monkeypatch.setenv("TERM", "dumb")
    reader, writer = os.openpty()
    with open(writer, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        reporter = Reporter()
        reporter.begin(1)
        reporter.step({"step": 1, "loss": 0.5, "tokens_per_second": 9.0, "padding_fraction": 0.0}, 1)
        reporter.end()
        said = os.read(reader, 1000).decode()
    os.close(reader)
    assert said.startswith("step 1/1  loss 0.5000")


@pytest.mark.parametrize("number", [12, 13])
def test_a_table_that_was_asked_for_is_shown_or_said_where_it_is(number, capsys):
    names = [f"c{i}" for i in range(number)]
    found = metrics.score(["f1", "confusion_matrix"], [*names, "c3"], [*names, "c1"])
    Reporter().figures("set", found)
    title, *shown = capsys.readouterr().out.partition("confusion_matrix: ")[2].splitlines()
    assert title.startswith("true class down, predicted across")
    if number > 12:
        assert shown == []
        assert "--json" in title
        return
    head, *rows = (line.split() for line in shown)
    assert [row[0] for row in rows] == found["confusion_matrix"]["labels"]
    assert [row[1] for row in rows] == head
    assert [list(map(float, row[2:])) for row in rows] == found["confusion_matrix"]["value"]


def test_the_look_for_leaks_is_bounded_and_says_so(run):
    made = recipe.load(run / "recipe.yaml")
    rows = list(evaluation.read_lines(Path(made.data.test[0].path)))
    assert leaks.seen_in_training(made, rows).startswith("2 of 17 exactly")
    assert "only" not in leaks.seen_in_training(made, rows)
    assert "the first 2 training rows only" in leaks.seen_in_training(made, rows, 60)


def test_a_run_is_measured_where_its_training_rows_are_gone(run, place):
    moved = (place / "train.jsonl").rename(place / "gone.jsonl")
    try:
        assert "not known, since the training rows cannot be read" in told(run)
    finally:
        moved.rename(place / "train.jsonl")


WRONG = [
    (("{p}/gpt",), "holds no run"),
    (("nowhere",), "no run, recipe or folder"),
    (("{p}/classifier", "--task", "classify"), "needs rows"),
    (("{p}/classifier", "--task", "clasify", "--data", "{p}/a.jsonl"), "did you mean classify"),
    (("--task", "classify", "--data", "{p}/a.jsonl"), "which model"),
    (("{p}/classifier", "--task", "classify", "--recipe", "bert"), "both given"),
    (("./nowhere", "--task", "clm", "--data", "{p}/text.jsonl"), "no folder"),
    (("{p}/gpt", "--task", "mlm", "--data", "{p}/text.jsonl"), "gpt2 has no MaskedLM head"),
    (("{p}/gpt", "--task", "classify", "--data", "{p}/a.jsonl"), "not trained for"),
    (("{r}", "--data", "{p}/none.jsonl"), "--data: no file"),
    (("{r}", "--data", "new={p}/none.jsonl"), "--data new: no file"),
    (("{r}", "data.test={p}/none.jsonl"), "data.test: no file"),
    (("{r}", "--data", "{p}/a.jsonl", "--data", "{p}/b.jsonl"), "needs a name"),
    (("{r}", "--data", "x={p}/a.jsonl", "--data", "x={p}/b.jsonl"), "two sets"),
    (("{r}", "--data", "../x={p}/a.jsonl"), "NAME=PATH"),
    (("{r}", "--data", "validation={p}/a.jsonl"), "recipe's own rows"),
    (("{r}", "--data", "{p}/a.jsonl", "--split", "test"), "both given"),
    (("{r}", "--split", "dev"), "no split"),
    (("{r}", "--metric", "bleu"), "cannot score what the task"),
    (("{r}", "--metric", "acuracy"), "did you mean"),
    (("{r}", "--num-beams", "2"), "writes no text"),
    (("{r}", "model.path={p}/gpt"), "model's own"),
    (("{r}", "train.batch_size=4"), "train.batch_size has no effect on what this command does"),
    (("{p}/gpt", "--task", "clm", "--data", "{p}/text.jsonl", "--num-beams", "4"), "num_beams has no effect here: in an"),
    (("{p}/marian", "--task", "denoise", "--data", "{p}/text.jsonl", "task.top_k=4", "task.do_sample=true"), "top_k has no"),
    (("{r}", "train.learning_rate=1e-3"), "has no effect on what this command does"),
    (("{r}", "--output", "{p}/gpt"), "holds no results"),
    (("{r}", "--output", "/proc/none"), "cannot write"),
    (("--predictions", "{p}/a.jsonl"), "go together"),
    (("--predictions", "{p}/a.jsonl", "--references", "{p}/a.jsonl", "--limit", "3"), "--limit cannot be combined"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[said for _, said in WRONG])
def test_wrong_words_are_told_before_weights_are_read(words, said, run, place, monkeypatch):
    monkeypatch.setattr(models, "load", None)
    before = content(place)
    with pytest.raises(UserError) as fault:
        told(*(word.format(p=place, r=run) for word in words))
    assert said in str(fault.value)
    assert "\n" not in fault.value.message
    assert {path for path in content(place) if "cache" not in path.parts} == {
        p for p in before if "cache" not in p.parts
    }


def child(*words, **environment):
    """A command in a process of its own: (status, standard output, standard error)."""
    plain = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    settings = {"OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "hftune", "eval", *map(str, words)],
        capture_output=True, text=True, env={**plain, **settings}, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_hub_id_is_read_from_the_cache_where_the_network_fails(place, tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "hub" / "models--someone--gpt"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    (home / "snapshots").mkdir()
    (home / "snapshots" / revision).symlink_to(place / "gpt")
    shut = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    words = ("--task", "clm", "--data", place / "text.jsonl", "--json")
    status, out, err = child("someone/gpt", *words, **shut)
    assert status == 0, err
    found, expected = json.loads(out), figures(place / "gpt", *words[:-1])
    assert {name: figure["count"] for name, figure in found.items()} == {n: f["count"] for n, f in expected.items()}
    # a process of its own chooses its kernels by the clock, so the last bits may differ
    assert [found[n]["value"] for n in expected] == pytest.approx([f["value"] for f in expected.values()], rel=1e-6)
    status, out, err = child("someone/else", *words, **shut)
    assert (status, out) == (2, "")
    assert "not in the local cache, and the Hub cannot be reached" in err
    assert "Traceback" not in err


def test_rows_that_do_not_divide_come_back_in_order_from_two_ranks(place, tmp_path):
    """None lost, none doubled: the same bytes as from one process, and the same figures."""
    tiny.write_rows(tmp_path / "rows.jsonl", tiny.lines("translation-ui-en-de", limit=7))
    words = (place / "marian", "--task", "translate", "--data", tmp_path / "rows.jsonl", *EN_DE, "--max-new-tokens", 6)
    words += ("eval.resamples=10", "--json", "--output")
    one = json.loads(told(*words, tmp_path / "one"))
    status, out, err = child(*words, tmp_path / "two", "--batch-tokens", 60, "--processes", 2, HF_HUB_OFFLINE="1")
    assert status == 0, err
    two = json.loads(out)
    assert {name: figure["count"] for name, figure in two.items()} == {n: figure["count"] for n, figure in one.items()}
    for found in (one, two):  # what is 1e-6 of the loss is hundreds of times that of its exponential
        found["perplexity"]["value"] = math.log(found["perplexity"]["value"])
    assert [two[n]["value"] for n in one] == pytest.approx([figure["value"] for figure in one.values()], abs=1e-6)
    rows = [(path / "predictions" / "test.jsonl").read_bytes() for path in (tmp_path / "one", tmp_path / "two")]
    assert rows[0] == rows[1]
    assert [path.name for path in (tmp_path / "two" / "predictions").iterdir()] == ["test.jsonl"]


def test_a_training_that_starts_leaves_alone_what_an_evaluation_writes(run, tmp_path, monkeypatch):
    own = tmp_path / "run"
    shutil.copytree(run, own)
    (own / ".metrics.json.1").touch()
    (own / "predictions" / ".killed.jsonl.0").touch()
    ordered = evaluation._in_order

    def start(*args):
        folder.RunFolder.claim(recipe.load(own / "recipe.yaml", [f"output.dir={own}"])).release()
        ordered(*args)

    monkeypatch.setattr(evaluation, "_in_order", start)
    assert figures(own) == figures(run)
    assert (own / "predictions" / "test.jsonl").read_bytes() == (run / "predictions" / "test.jsonl").read_bytes()
    monkeypatch.undo()
    folder.RunFolder.claim(recipe.load(own / "recipe.yaml", [f"output.dir={own}"])).release()
    left = [path.name for path in own.rglob(".*") if path.name != ".lock"]
    assert not left, "what a kill left goes when no evaluation is at work"


def test_a_fault_on_two_ranks_is_told_in_one_line(place, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "whole"}\n{"text": \n', encoding="utf-8")
    words = (place / "gpt", "--task", "clm", "--data", rows, "--processes", 2)
    status, _, err = child(*words, HF_HUB_OFFLINE="1")
    assert status == 2
    assert err.startswith(f"error: {rows}:2:")
    assert len(err.splitlines()) == 2, "the fault and its hint"


def test_sliding_windows_on_two_ranks_give_the_figures_of_one(place):
    words = (place / "gpt", "--task", "clm", "--data", place / "text.jsonl", "task.max_length=24", "eval.stride=8")
    words += ("--limit", 7, "eval.resamples=20", "--json")
    one = json.loads(told(*words))
    status, out, err = child(*words, "--processes", 2, HF_HUB_OFFLINE="1")
    assert status == 0, err
    two = json.loads(out)
    assert one["loss"]["signature"].startswith("max_length:24|stride:8|")
    assert [(figure["count"], figure["tokens"]) for figure in two.values()] == [
        (f["count"], f["tokens"]) for f in one.values()
    ]
    for key in ("value", "low", "high"):
        assert [two[n][key] for n in one] == pytest.approx([figure[key] for figure in one.values()], rel=1e-6)


def test_every_loss_has_the_interval_of_its_rows(run):
    """Of one term as a mean over rows has it; of several terms the whole is as wide as its parts allow."""
    from hftune.metrics import intervals

    found = figures(run)["loss"]
    assert found["low"] < found["value"] < found["high"]
    assert found["signature"].startswith("version:hftune-")
    table = {
        "mlm": (np.array([3.0, 1, 4, 2]), np.array([2, 1, 2, 1])),
        "nsp": (np.array([0.5, 0.9, 0.1, 0.3]), np.ones(4, int)),
    }
    task = tasks.load("mlm")
    task = task.under(task.options(next_sentence="nsp"))
    rows = SimpleNamespace(task=task, data=SimpleNamespace(documents=np.array([0, 0, 1, 2])))
    told = evaluation.losses(table, rows, Eval(resamples=200), True)
    drawn = np.concatenate(list(intervals.resamples(3, 200, 0)))[:, [0, 0, 1, 2]]
    each = {name: drawn @ sums / (drawn @ counts) for name, (sums, counts) in table.items()}
    for name, samples in {"loss": each["mlm"] + each["nsp"], "mlm_loss": each["mlm"], "nsp_loss": each["nsp"]}.items():
        assert [told[name]["low"], told[name]["high"]] == pytest.approx(np.quantile(samples, [0.025, 0.975]))
    assert all("why" not in one for one in told.values())
    without = evaluation.losses(table, rows, Eval(resamples=0), True)["loss"]
    assert (without["low"], without["high"], without["signature"]) == (None, None, told["loss"]["signature"])
    assert "resamples" in without["why"]


@pytest.mark.parametrize("used", [subject.MEASURING, subject.ANSWERING])
def test_settings_of_training_are_refused_where_nothing_is_trained(used):
    subject.check_settings(
        ["train.matmul=highest", "train.precision=fp32", "eval.batch_tokens=9", "data.encoding=cp1252", "task.top_k=1"],
        used,
    )
    for text in (
        "train.learning_rate=1",
        "train={}",
        *([] if "eval" in used else ["eval.metrics=[]"]),
    ):
        with pytest.raises(UserError, match="has no effect on what this command does") as fault:
            subject.check_settings([text], used)
        assert fault.value.where == text
