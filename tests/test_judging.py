"""Figures without a model: files against files, runs against runs, rows that leaked."""

import json
from pathlib import Path

import children
import pytest
import tiny

from hftune import checking, evaluation, judging, metrics, recipe
from hftune.errors import UserError
from hftune.report import Reporter

SILENT = Reporter(silent=True)


def test_files_score_as_their_lines_do(tmp_path):
    texts, golden = ["the cat sat on the mat", "a b c d e"], ["the cat sat on a mat", "a b c d f"]
    given, first, second = (tmp_path / name for name in ("given.txt", "first.txt", "second.txt"))
    given.write_text("\n".join(texts) + "\n")
    first.write_text("\n".join(golden))
    second.write_text("\r\n".join(texts) + "\r\n")
    found = judging.files(str(given), [str(first)], ["bleu"], SILENT)
    assert found == metrics.score(["bleu"], texts, golden)
    both = judging.files(str(given), [str(first), str(second)], ["bleu"], SILENT)
    assert both["bleu"]["value"] == pytest.approx(100)
    first.write_text("one line\n")
    with pytest.raises(UserError, match="has 1 lines"):
        judging.files(str(given), [str(first)], None, SILENT)
    with pytest.raises(UserError, match="cannot read"):
        judging.files(str(tmp_path / "none.txt"), [str(first)], None, SILENT)


def test_runs_are_compared_on_the_same_rows_only(tmp_path, tokenizer_folder):
    runs = []
    for seed in (1, 2):
        place = tmp_path / str(seed)
        place.mkdir()
        assert children.child(children.train, tiny.classify(place, str(tokenizer_folder), seed=seed)) == 0
        runs.append(str(place / "run"))
    found = judging.compare(runs, ["accuracy"], "validation", SILENT)
    own = [json.loads((tmp_path / seed / "run" / "metrics.json").read_text())["accuracy"]["value"] for seed in "12"]
    systems = found["accuracy"]["systems"]
    assert [systems[run]["value"] for run in runs] == own
    assert systems[runs[1]]["difference"] == pytest.approx(own[1] - own[0])
    with pytest.raises(UserError, match="was not scored on test"):
        judging.compare(runs, None, "test", SILENT)
    file = tmp_path / "2" / "run" / "predictions" / "validation.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[1:] + lines[:1]) + "\n")
    with pytest.raises(UserError, match="different rows"):
        judging.compare(runs, None, "validation", SILENT)


def test_leaks_are_counted(tmp_path, tokenizer_folder):
    source = tiny.classify(tmp_path, str(tokenizer_folder))
    rows = tiny.lines("sentiment-tweets", limit=60)
    tiny.write_rows(tmp_path / "held.jsonl", rows[38:48])
    (told,) = checking.leaks(recipe.from_dict(source)).values()
    assert told.startswith("2 of 10 exactly")


def test_every_metric_is_listed():
    assert [one["name"] for one in judging.listing()] == metrics.names()


def scored(folder, source, losses, tokens, whole=True, **more):
    """A folder as `hftune eval` leaves it for a language model: documents of known size."""
    (folder / "predictions").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe.dump(recipe.from_dict(source)), encoding="utf-8")
    (folder / "run.json").write_text("{}")
    lines = [
        {"start": f"as {folder.name} has it", "nll": nll, "tokens": n, "bytes": 40 + i, "words": 8, **more}
        | {"score": {"loss": nll / n, **({"bits_per_byte": 1.0} if whole else {})}}
        for i, (nll, n) in enumerate(zip(losses, tokens, strict=True))
    ]
    tiny.write_rows(folder / "predictions" / "test.jsonl", lines)
    return str(folder)


def test_language_models_are_compared_by_document(tmp_path):
    source = tiny.mlm(tmp_path)
    whole = [[10.0, 22.0, 30.0], [4, 9, 11]]
    runs = [scored(tmp_path / "a", source, *whole), scored(tmp_path / "b", source, [9.0, 21.0, 28.0], [4, 9, 11])]
    found = judging.compare(runs, ["perplexity"], "test", SILENT)
    assert set(found) == {"loss", "perplexity", "bits_per_byte", "word_perplexity"}
    assert found["loss"]["systems"][runs[1]]["difference"] == pytest.approx((58 - 62) / 24)
    other = scored(tmp_path / "c", source, [9.0, 21.0, 28.0], [5, 9, 11])  # another tokenizer
    found = judging.compare([runs[0], other], None, "test", SILENT)
    assert set(found) == {"bits_per_byte", "word_perplexity"}
    assert found["bits_per_byte"]["systems"][other]["difference"] < 0
    with pytest.raises(UserError, match="has no pseudo_perplexity") as fault:
        judging.compare(runs, ["pseudo_perplexity"], "test", SILENT)
    assert "eval.pseudo_perplexity=true" in fault.value.hint


def test_masked_models_are_compared_by_what_they_predict_alike(tmp_path):
    source, own = tiny.mlm(tmp_path), {"whole": False, "pseudo_nll": 5.0, "pseudo_tokens": 3}
    runs = [scored(tmp_path / name, source, [3.0, 4.0], [2, 2], **own) for name in "ab"]
    assert set(judging.compare(runs, None, "test", SILENT)) == {"loss", "perplexity"}
    found = judging.compare(runs, ["pseudo_perplexity"], "test", SILENT)
    assert found["pseudo_loss"]["systems"][runs[0]]["value"] == pytest.approx(5 / 3)
    other = scored(tmp_path / "c", source, [3.0, 4.0], [1, 3], **own)
    with pytest.raises(UserError, match="predict different tokens"):
        judging.compare([runs[0], other], None, "test", SILENT)
    lines = (tmp_path / "b" / "predictions" / "test.jsonl").read_text(encoding="utf-8")
    (tmp_path / "b" / "predictions" / "test.jsonl").write_text(lines.replace('"bytes": 40', '"bytes": 39'))
    with pytest.raises(UserError, match="different rows"):
        judging.compare(runs, None, "test", SILENT)


def answered(folder, answers, prompts, **more):
    """A folder as `hftune eval` leaves it for a model that writes."""
    (folder / "predictions").mkdir(parents=True)
    source = {**tiny.mlm(folder.parent), "task": {"name": "clm", "kind": "prompt"}}
    (folder / "recipe.yaml").write_text(recipe.dump(recipe.from_dict(source)), encoding="utf-8")
    references = ["a b c", "d e", "f"]
    rows = [
        {"prompt": prompt, "reference": reference, "prediction": answer, **more}
        for prompt, reference, answer in zip(prompts, references, answers, strict=True)
    ]
    tiny.write_rows(folder / "predictions" / "test.jsonl", rows)
    return str(folder)


def test_how_a_run_puts_a_row_to_its_model_is_its_own_affair(tmp_path):
    """Two templates of the same rows are compared; other references, or another source, are other rows."""
    plain = answered(tmp_path / "a", ["a b", "d", "x"], ["Q1\n", "Q2\n", "Q3\n"])
    templated = answered(tmp_path / "b", ["a b c", "d e", "f"], ["<user>Q1", "<user>Q2", "<user>Q3"])
    found = judging.compare([plain, templated], ["exact_match"], "test", SILENT)
    assert found["exact_match"]["systems"][templated]["difference"] == pytest.approx(1)
    sourced = answered(tmp_path / "c", ["a", "b", "c"], ["Q1\n", "Q2\n", "Q3\n"], source="Q1")
    with pytest.raises(UserError, match="different rows"):
        judging.compare([plain, sourced], None, "test", SILENT)
    file = Path(templated) / "predictions" / "test.jsonl"
    tiny.write_rows(file, [{**json.loads(line), "truncated": True} for line in file.read_text().splitlines()])
    assert judging.compare([plain, templated], ["exact_match"], "test", SILENT) == found


def labelled(folder, answers, metrics=None):
    """A folder as `hftune eval` leaves it for a classifier."""
    (folder / "predictions").mkdir(parents=True)
    source = {**tiny.mlm(folder.parent), "task": {"name": "classify"}, "eval": {"metrics": metrics}}
    (folder / "recipe.yaml").write_text(recipe.dump(recipe.from_dict(source)), encoding="utf-8")
    rows = [{"text": f"row {i}", "prediction": x, "reference": "ab"[i % 2]} for i, x in enumerate(answers)]
    tiny.write_rows(folder / "predictions" / "test.jsonl", rows)
    return str(folder)


def test_of_a_recipes_metrics_those_are_compared_that_can_be(tmp_path):
    """Not the table of confusions, and not the losses of a model that answers; what was asked for is not left out."""
    named = ["confusion_matrix", "accuracy"]
    runs = [labelled(tmp_path / name, answers, named) for name, answers in (("a", "abab"), ("b", "aaab"))]
    assert set(judging.compare(runs, None, "test", SILENT)) == {"accuracy"}
    with pytest.raises(UserError, match="no better and worse"):
        judging.compare(runs, ["confusion_matrix"], "test", SILENT)
    runs = [answered(tmp_path / name, ["a b", "d", "x"], ["1", "2", "3"]) for name in "cd"]
    for run in runs:
        made = recipe.load(Path(run) / "recipe.yaml", ["eval.metrics=[perplexity, exact_match]"])
        (Path(run) / "recipe.yaml").write_text(recipe.dump(made), encoding="utf-8")
    assert set(judging.compare(runs, None, "test", SILENT)) == {"exact_match"}


def test_scores_of_all_classes_are_held_for_a_metric_that_reads_them_alone(tmp_path, monkeypatch):
    """Of 300 labels they took 31 KB a row, for an accuracy."""
    runs = [labelled(tmp_path / name, answers) for name, answers in (("a", "abab"), ("b", "aaab"))]
    for run in runs:
        path = Path(run) / "predictions" / "test.jsonl"
        rows = [
            json.loads(line) | {"scores": {"a": 0.5, "b": 0.5}, "n_best": [{}]}
            for line in path.read_text().splitlines()
        ]
        tiny.write_rows(path, rows)
    held, real = [], judging._without
    monkeypatch.setattr(judging, "_without", lambda *given: held.append(found := real(*given)) or found)
    for metric, kept in (("accuracy", False), ("brier", True)):
        held.clear()
        assert set(judging.compare(runs, [metric], "test", SILENT)) == {metric}
        assert {"scores" in line for line in held[:8]} == {kept}
        assert not any("n_best" in line for line in held)
        columns = evaluation.read_columns(path, [metric])
        assert columns is not None
        assert (columns[2] is not None) == kept


def test_small_figures_and_differences_are_shown_with_their_digits(tmp_path, capsys):
    runs = [labelled(tmp_path / name, "abab") for name in "ab"]
    for run, off in zip(runs, (3e-3, 1e-3), strict=True):
        made = {**tiny.mlm(tmp_path), "task": {"name": "classify", "kind": "regression"}}
        (Path(run) / "recipe.yaml").write_text(recipe.dump(recipe.from_dict(made)), encoding="utf-8")
        rows = [{"text": f"row {i}", "prediction": i / 1000 + off, "reference": i / 1000} for i in range(9)]
        tiny.write_rows(Path(run) / "predictions" / "test.jsonl", rows)
    judging.compare(runs, ["mse"], "test", Reporter())
    _, first, second, _ = [*capsys.readouterr().out.splitlines(), ""][:4]
    assert first.split() == ["mse", runs[0], "9e-06"]
    assert second.split()[2:6] == ["1e-06", "-8e-06", "[-8e-06,", "-8e-06]"]


def test_the_figure_of_a_class_is_shown_where_it_is_asked_for(tmp_path, capsys):
    runs = [labelled(tmp_path / name, answers) for name, answers in (("a", "abab"), ("b", "aaab"))]
    judging.compare(runs, ["f1[b]", "f1[z]"], "test", Reporter())
    _, *shown = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()[:3]) for line in shown[:2]] == [
        f"f1[b] {runs[0]} 1.0000", f"f1[b] {runs[1]} 0.6667",
    ]  # fmt: skip
    assert [line.split()[2] for line in shown[2:]] == ["undefined"] * 2


def test_a_comparison_says_where_there_is_something_to_compare(tmp_path):
    runs = [labelled(tmp_path / name, "ab") for name in "ab"]
    for is_run in (False, True):  # results that eval --output has kept cannot be evaluated
        if is_run:
            (Path(runs[0]) / "run.json").write_text("{}")
        with pytest.raises(UserError, match="was not scored on validation") as fault:
            judging.compare(runs, None, "validation", SILENT)
        assert fault.value.hint.startswith("it was on test: --split test; or ")
        assert (f"hftune eval {runs[0]} --split validation" in fault.value.hint) == is_run
    with pytest.raises(UserError, match="is given twice"):
        judging.compare([runs[0], runs[0]], None, "test", SILENT)
    source = tiny.mlm(tmp_path)
    runs = [scored(tmp_path / name, source, [3.0, 4.0], [2, 2], whole=False) for name in "cd"]
    with pytest.raises(UserError, match="no run has bits_per_byte on these rows"):
        judging.compare(runs, ["bits_per_byte"], "test", SILENT)
