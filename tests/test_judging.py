"""Figures without a model: files against files, runs against runs, rows that leaked."""

import json

import children
import pytest
import tiny

from hftune import inspection, judging, metrics, recipe
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
    (told,) = inspection.leaks(recipe.from_dict(source)).values()
    assert told.startswith("2 of 10 exactly")


def test_every_metric_is_listed():
    assert [one["name"] for one in judging.listing()] == metrics.names()
