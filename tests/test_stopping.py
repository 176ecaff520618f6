"""When a run ends, which of its weights stay, and what it is fed: by steps, epochs, tokens, time or no more gain."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import children
import fine
import kills
import numpy as np
import pytest
import tiny
import zoo
from typer.testing import CliRunner

from hftune import cli, loop, machine, prepare, recipe, run, task
from hftune.batching import Plan
from hftune.errors import Interrupted, UserError
from hftune.folder import RunFolder
from hftune.report import Reporter


def trained(path, tokenizer_folder, **train):
    """(log, run.json, figures) of a short classification run: 40 rows, five steps an epoch."""
    run.train(recipe.from_dict(tiny.classify(path, str(tokenizer_folder), **train)), Reporter(silent=True))
    return told(path)


def told(path):
    log = [json.loads(line) for line in (path / "run" / "log.jsonl").read_text().splitlines()]
    return log, *(json.loads((path / "run" / name).read_text()) for name in ("run.json", "metrics.json"))


def test_an_extended_run_that_was_stopped_says_whose_weights_it_has(tmp_path, tokenizer_folder):
    source = tiny.classify(tmp_path, str(tokenizer_folder), max_steps=4, save_steps=2)
    words = {
        "eval": (tmp_path / "run",),
        "predict": (tmp_path / "run", tmp_path / "held.jsonl", "--limit", 1),
        "finetune": (
            "--task", "classify", "--model", tmp_path / "run", "--train", tmp_path / "tweets.jsonl", "train.max_steps=1",
            f"data.validation={tmp_path / 'held.jsonl'}", f"output.dir={tmp_path / 'next'}", f"data.cache_dir={tmp_path / 'cache'}", "--fresh",
        ),
    }  # fmt: skip

    def said(command):
        found = CliRunner().invoke(cli.app, [command, *map(str, words[command])], catch_exceptions=False)
        assert found.exit_code == 0
        return " ".join(found.output.split())

    older = "extended and not finished since: its model is the one it had then, of step 4"
    assert children.child(children.train, source) == 0
    assert not [command for command in words if "not finished since" in said(command)]
    source["train"]["max_steps"] = 9
    assert children.child(children.train_and_die, source, 7, signal.SIGTERM) != 0
    assert told(tmp_path)[1]["state"] == "interrupted"
    assert [command for command in words if f"warning: {tmp_path / 'run'} was {older}" in said(command)] == [*words]
    assert f"The run was {older}." in (tmp_path / "run" / "README.md").read_text()
    assert children.child(children.train, source) == 0
    assert not [command for command in words if "not finished since" in said(command)]
    assert "9 steps" in (tmp_path / "run" / "README.md").read_text()


def test_a_run_that_stopped_early_is_finished_until_its_patience_is_raised(tmp_path, tokenizer_folder):
    source = tiny.classify(
        tmp_path, str(tokenizer_folder), max_steps=9, eval_steps=1, early_stopping_patience=1, save_steps=1,
        metric_for_best_model="accuracy", learning_rate=1e-12,
    )  # fmt: skip
    assert children.child(children.train, source) == 0
    assert told(tmp_path)[1]["step"] == 2
    (tmp_path / "run" / "predictions" / "test.jsonl").write_text("as hftune eval wrote it")

    def content():
        files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: path.read_bytes() for path in files}

    before = content()
    assert children.child(children.train, source) == 0
    assert content() == before
    source["train"]["early_stopping_patience"] = 2
    assert children.child(partial(children.train, allow=["train.early_stopping_patience"]), source) == 0
    assert told(tmp_path)[1]["step"] == 3


def test_figures_of_the_first_rows_say_so(tmp_path, tokenizer_folder):
    source = tiny.classify(tmp_path, str(tokenizer_folder), max_steps=1) | {"eval": {"limit": 7}}
    figures = run.train(recipe.from_dict(source), Reporter(silent=True))
    assert (figures["accuracy"]["count"], figures["accuracy"]["split"]) == (7, "validation[:7]")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| 7 | validation[:7] |" in card
    assert "split: validation[:7]" in card
    assert f"name: {tmp_path / 'held.jsonl'}" in card, "where the rows are from is told as without a limit"


def test_it_stops_where_nothing_gets_better(tmp_path, tokenizer_folder):
    log, state, _ = trained(
        tmp_path, tokenizer_folder, learning_rate=1e-12, max_steps=9, eval_steps=1,
        metric_for_best_model="accuracy", early_stopping_patience=2,
    )  # fmt: skip
    assert (state["state"], state["step"]) == ("finished", 3), "the first is the best, two more are no better"
    assert [entry["step"] for entry in log if "eval_accuracy" in entry] == [1, 2, 3]


@pytest.mark.parametrize(("metric", "best", "save_steps"), [("accuracy", max, 1), ("loss", min, 10), ("f1", max, 10)])
def test_the_best_checkpoint_by_any_metric_stays(metric, best, save_steps, tmp_path, tokenizer_folder):
    """Also where no checkpoint was due at it, and where more were than are kept."""
    source = tiny.classify(
        tmp_path, str(tokenizer_folder), learning_rate=1e-2, lr_scheduler_type="constant", max_steps=10, eval_steps=1,
        save_steps=save_steps, metric_for_best_model=metric, load_best_model_at_end=True,
    )  # fmt: skip
    for name, labels in (("train", "aba"), ("validation", "aab")):  # what is right until the rows are told apart
        words = ["it is the file", "read of a list", "we have no"]
        rows = [{"text": f"{words[i % 3]} {i}", "label": labels[i % 3]} for i in range(30)]
        source["data"][name] = str(tiny.write_rows(tmp_path / f"{name}.jsonl", rows))
    run.train(recipe.from_dict(source), Reporter(silent=True))
    log, state, figures = told(tmp_path)
    seen = [entry[f"eval_{metric}"] for entry in log if f"eval_{metric}" in entry]
    assert len(seen) == state["step"] == 10
    assert figures[metric]["value"] == pytest.approx(best(seen), abs=1e-6)
    assert seen[-1] != best(seen)
    kept = {int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept >= {1 + seen.index(best(seen)), 10}
    assert len(kept) <= 3, "two, besides the best"


@pytest.mark.parametrize("change", ["train.metric_for_best_model", "data.validation", "eval.limit"])
def test_what_was_best_by_another_figure_or_on_other_rows_is_best_no_longer(change, tmp_path, tokenizer_folder):
    """An accuracy below one is no loss below one, and a loss on easy rows is none on all."""
    made = tiny.classify(
        tmp_path, str(tokenizer_folder), learning_rate=1e-2, lr_scheduler_type="constant", max_steps=3, eval_steps=1,
        metric_for_best_model="accuracy", load_best_model_at_end=True,
    )  # fmt: skip
    easy = next(row for row in tiny.lines("sentiment-tweets", limit=60)[40:] if row["label"] == "positive")
    made["eval"] = {"limit": 1} if change == "eval.limit" else {}
    if change != "train.metric_for_best_model":  # one row that is easily right
        held = Path(made["data"]["validation"])
        whole = held.read_text()
        held.write_text(json.dumps(easy) + "\n" + (whole if change == "eval.limit" else ""))
    assert children.child(children.train, made) == 0
    again = {**made, "eval": {}, "train": {**made["train"], "max_steps": 5}}
    if change == "data.validation":
        held.write_text(whole)
    elif change != "eval.limit":
        again["train"]["metric_for_best_model"] = "loss"
    name = f"eval_{again['train']['metric_for_best_model']}"
    better = min if name == "eval_loss" else max
    assert children.child(lambda: children.train(again, allow=[change])) == 0
    log, _, _ = told(tmp_path)
    since = {entry["step"]: entry[name] for entry in log if name in entry and entry["step"] > 3}
    assert since.keys() == {4, 5}
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-5" / "manifest.json").read_text())["state"]
    assert state["best"] == better(since.values())
    assert since[state["best_step"]] == state["best"]


@pytest.mark.parametrize(("interval", "kept"), [("0.0001s", [1, 2, 3, 4]), ("30m", [3, 4]), (None, [3, 4])])
def test_a_checkpoint_is_not_put_off_for_ever(interval, kept, tmp_path, tokenizer_folder):
    """By steps at the third and the last alone; by the clock, where that is sooner, too."""
    trained(
        tmp_path, tokenizer_folder, max_steps=4, eval_steps=100, save_steps=3, save_interval=interval, save_total_limit=9
    )  # fmt: skip
    found = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == [f"step-{step}" for step in kept]


@pytest.mark.parametrize(
    ("at", "broken", "world"),
    [(at, broken, 1) for at in (4, 6) for broken in (signal.SIGKILL, signal.SIGTERM, None)] + [(4, signal.SIGTERM, 2)],
)
def test_an_evaluation_that_is_broken_off_costs_no_step(at, broken, world, tmp_path, tokenizer_folder):
    """By a kill, a signal or a fault of its own, in between and at the end: it is taken up again, and nothing else."""
    train = {"max_steps": 6, "eval_steps": 2, "save_steps": 4, "logging_steps": 1, "early_stopping_patience": 3}

    def made(name):
        (tmp_path / name).mkdir()
        return tiny.classify(tmp_path / name, str(tokenizer_folder), **train)

    def broken_off():
        evaluate, times = loop.evaluate_rows, []

        def measured(*args, **more):
            found = evaluate(*args, **more)
            times.append(1)
            if len(times) == at // 2:
                if broken is None:
                    raise RuntimeError("a metric broke")
                os.kill(os.getpid(), broken)
            return found

        loop.evaluate_rows = measured
        children.train(source)

    source = made("again")
    assert 0 not in (children.ranks(world, broken_off) if world > 1 else [children.child(broken_off)])
    checkpoints = tmp_path / "again" / "run" / "checkpoints"
    assert (checkpoints / f"step-{at}").is_dir(), "saved before it is measured"
    for one in (source, made("straight")):
        assert kills.start(one, None, world) == [0] * world
    (log, _, figures), (straight, _, wanted) = told(tmp_path / "again"), told(tmp_path / "straight")
    assert figures == wanted
    assert [{k: v for k, v in e.items() if k != "tokens_per_second"} for e in log if "event" not in e] == [
        {k: v for k, v in e.items() if k != "tokens_per_second"} for e in straight
    ]


def test_an_undefined_figure_is_no_better_than_any(tmp_path, tokenizer_folder, monkeypatch):
    """Of texts that are all the same there is no correlation; the run ends with its last weights."""
    warned = []
    monkeypatch.setattr(Reporter, "warn", lambda self, line: warned.append(line))
    source = tiny.classify(
        tmp_path, str(tokenizer_folder), max_steps=6, eval_steps=2, metric_for_best_model="pearson",
        load_best_model_at_end=True, early_stopping_patience=2,
    )  # fmt: skip
    source["task"]["kind"] = "regression"
    for name in ("train", "validation"):
        rows = [{"text": "it is the file", "label": float(i % 5)} for i in range(20)]
        source["data"][name] = str(tiny.write_rows(tmp_path / f"{name}.jsonl", rows))
    run.train(recipe.from_dict(source), Reporter(silent=True))
    _, state, figures = told(tmp_path)
    assert (state["state"], state["step"]) == ("finished", 4), "two evaluations are no better than none"
    assert figures["pearson"]["value"] is None
    assert [line.split(" (")[0] for line in warned] == [f"step {step}: pearson is undefined" for step in (2, 4)]


@pytest.mark.parametrize("factor", [1e3, float("inf"), float("nan")])
@pytest.mark.parametrize(("name", "metric"), [("mlm", "perplexity"), ("clm", "perplexity"), ("classify", "loss")])
def test_a_loss_or_perplexity_that_is_no_number_is_no_better_than_any(
    name, metric, factor, tmp_path, tokenizer_folder, monkeypatch
):
    """Above a loss of 709 there is no perplexity in float64. The run goes on to its end, and its figures are JSON."""
    real = loop.evaluate_rows

    def huge(*given, **more):
        return {term: (sums * factor, count) for term, (sums, count) in real(*given, **more).items()}

    monkeypatch.setattr(loop, "evaluate_rows", huge)
    train = {"max_steps": 4, "eval_steps": 2, "metric_for_best_model": metric, "load_best_model_at_end": True}
    source = tiny.mlm(tmp_path, **train)
    if name == "clm":
        source |= {"task": {"name": "clm", "max_length": 48}, "tokenizer": {"train": "bpe", "vocab_size": 400}}
        source["model"] = {"init": "gpt2", "config": zoo.SIZE}
    elif name == "classify":
        source = tiny.classify(tmp_path, str(tokenizer_folder), **train)
    run.train(recipe.from_dict(source), Reporter(silent=True))
    _, state, figures = told(tmp_path)
    assert (state["state"], state["step"]) == ("finished", 4)
    lost = {figure for figure in ("loss", "perplexity") if figures.get(figure, {"value": 0})["value"] is None}
    if factor == 1e3:
        assert figures["loss"]["value"] > 709
    assert lost == ({"perplexity"} if factor == 1e3 else {"loss", "perplexity"}) & figures.keys()
    assert all(figures[figure]["why"] for figure in lost)
    assert ("bits_per_byte" in figures) == (name == "clm")


def test_each_batch_of_an_evaluation_is_a_sign_of_life_and_a_long_one_says_how_far_it_is(
    tmp_path, tokenizer_folder, monkeypatch, capsys
):
    """An evaluation that took longer than train.timeout ended the run, and each start of it again at the same place."""
    events, real = [], loop.evaluate_rows
    monkeypatch.setattr(machine.Watchdog, "beat", lambda self: events.append("beat"))

    def evaluated(*given, **more):
        events.append("begins")
        found = real(*given, **more)
        events.append("ends")
        return found

    monkeypatch.setattr(loop, "evaluate_rows", evaluated)
    monkeypatch.setattr("hftune.report.QUIET", 0)
    source = tiny.classify(tmp_path, str(tokenizer_folder), max_steps=2)
    run.train(recipe.from_dict({**source, "eval": {"batch_tokens": 8}}), Reporter())
    within = events[events.index("begins") : events.index("ends")]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("measuring validation: ")]
    assert within.count("beat") == len(said) == 20, "a row is a batch"
    assert said[4] == "measuring validation: 5 of 20 rows"
    made = recipe.load(tmp_path / "run" / "recipe.yaml")
    tiny.evaluate(tmp_path / "run", made, None, Reporter())
    assert "measuring validation: 20 of 20 rows" in capsys.readouterr().out
    monkeypatch.setattr("hftune.report.QUIET", 1e9)
    tiny.evaluate(tmp_path / "run", made, None, Reporter())
    assert "measuring validation" not in capsys.readouterr().out


def test_of_evaluations_on_the_way_no_predictions_stay(tmp_path, tokenizer_folder):
    """A finished run held a second file of them under a hidden name, of many rows and labels gigabytes."""
    trained(tmp_path, tokenizer_folder, max_steps=4, eval_steps=2, metric_for_best_model="accuracy")
    assert [path.name for path in (tmp_path / "run" / "predictions").iterdir()] == ["validation.jsonl"]


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 5), (1.6, 8)])
def test_it_stops_by_epochs(epochs, steps, tmp_path, tokenizer_folder):
    _, state, _ = trained(tmp_path, tokenizer_folder, max_steps=None, num_train_epochs=epochs, eval_steps=100)
    assert state["step"] == steps


def test_it_stops_by_tokens(tmp_path, tokenizer_folder):
    log, state, _ = trained(tmp_path, tokenizer_folder, max_tokens=400, max_steps=100, eval_steps=100)
    tokens = [entry["tokens"] for entry in log if "tokens" in entry]
    assert len(tokens) == state["step"] < 100
    assert tokens[-2] < 400 <= tokens[-1]


def stopped(path, tokenizer_folder):
    """One step, with the exit status that the command has."""
    try:
        trained(path, tokenizer_folder, max_steps=3, max_time="0.001s")
    except run.Interrupted as stop:
        raise SystemExit(stop.code) from None
    raise SystemExit(1)


def test_it_stops_by_the_clock_and_goes_on(tmp_path, tokenizer_folder):
    assert children.child(stopped, tmp_path, tokenizer_folder) == machine.LATE
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (state["state"], state["step"], state["reason"]) == ("interrupted", 1, "max_time 0.001s")
    _, state, _ = trained(tmp_path, tokenizer_folder, max_steps=3)
    assert (state["state"], state["step"]) == ("finished", 3)


def deaf(source, opened, number):
    """A run whose words nobody reads any more from step 3 on, when it gets a signal."""
    from hftune import folder

    reader, writer = opened()
    os.dup2(writer, 1)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    log = folder.RunFolder.log

    def deadly(self, entry):
        log(self, entry)
        if entry.get("step") == 3 and "loss" in entry:
            os.close(reader)
            os.kill(os.getpid(), number)

    folder.RunFolder.log = deadly
    try:
        run.train(recipe.from_dict(source), Reporter())
    except Interrupted as stop:
        raise SystemExit(stop.code) from None


@pytest.mark.parametrize(
    ("opened", "number", "status"), [(os.pipe, signal.SIGINT, 130), (os.openpty, signal.SIGHUP, 129)]
)
def test_it_stops_after_saving_though_nobody_reads_any_more(opened, number, status, tmp_path, tokenizer_folder):
    """Ctrl-C ends `tee` first, and a terminal is gone before its SIGHUP is answered: the next line cost the checkpoint."""
    source = tiny.classify(tmp_path, str(tokenizer_folder), max_steps=9, eval_steps=1)
    assert children.child(deaf, source, opened, number) == status
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (state["state"], state["step"]) == ("interrupted", 3)
    assert (tmp_path / "run" / "checkpoints" / "step-3").is_dir()


@pytest.mark.parametrize(
    "train", [{"batch_size": 4}, {"batch_tokens": 150}, {"group_by_length": True}, {"seed": 3}], ids=str
)
def test_a_step_has_the_rows_that_the_recipe_says(train, tmp_path, tokenizer_folder):
    source = tiny.classify(tmp_path, str(tokenizer_folder))
    source["train"] = {"max_steps": 1, **train}
    made = recipe.from_dict(source)
    rows = prepare.prepare(made, ["train"], Reporter(silent=True)).rows["train"]
    wanted = Plan(rows.data.lengths, **{"seed": 42, "batch_size": 32, **train})
    found = run.make_plan(made, rows)
    assert [step.tolist() for step in found.epoch(1)] == [step.tolist() for step in wanted.epoch(1)]


def test_a_mixture_has_the_weights_and_prefixes_of_its_sources(tmp_path, tokenizer_folder):
    rows = tiny.lines("sentiment-tweets", limit=40)
    sources = [
        {"path": str(tiny.write_rows(tmp_path / f"{i}.jsonl", part)), "weight": weight, "prefix": prefix}
        for i, (part, weight, prefix) in enumerate([(rows[:10], 2.0, "tweet: "), (rows[10:], 0.5, "")])
    ]
    made = recipe.from_dict(
        {**tiny.classify(tmp_path, str(tokenizer_folder)), "data": {"train": sources, "cache_dir": str(tmp_path / "c")}}
    )
    prepared = prepare.prepare(made, ["train"], Reporter(silent=True))
    found = prepared.rows["train"]
    before = prepared.tokenizer("tweet: ", add_special_tokens=False)["input_ids"]
    own = [found.data[i]["input_ids"][1 : 1 + len(before)].tolist() == before for i in range(40)]
    assert own == [True] * 10 + [False] * 30
    plan = run.make_plan(made, found)
    seen = np.bincount(np.concatenate([plan.rows(step)[1] for step in range(len(plan.epoch(0)))]), minlength=40)
    assert (seen[:10] == 2).all(), "each row of the first twice"
    assert (seen[10:].sum(), seen[10:].max()) == (15, 1), "half of the second"


PLAIN = {"text": "so it is .", "label": "a"}
ROWS = {
    "classify": (PLAIN, "text"),
    "qa": ({"question": "who ?", "context": "it is I .", "id": "1"}, "question"),
    "choice": ({"question": "who ?", "choices": ["I", "you"], "context": "we"}, "question"),
    "translate": ({"source": "so it is ."}, "source"),
    "summarize": ({"text": "so it is ."}, "text"),
}


@pytest.mark.parametrize("kind", sorted(set(task.names()) - {"tag"}))
def test_a_prefix_stands_before_the_input_of_every_task(kind):
    row, column = ROWS.get(kind, (PLAIN, "text"))
    options = task.load(kind).options()
    if kind == "classify":
        options = options.model_copy(update={"label_names": ("a", "b")})
    if kind in ("summarize", "translate"):
        column = task.load(kind).under(options).inputs_only(options)[0]
        row = {column: "so it is ."}
    name = {"mlm": "bert", "plm": "xlnet", "clm": "gpt2", "span": "t5", "translate": "t5", "summarize": "t5"}.get(
        kind, "roberta" if kind == "denoise" else "bert"
    )
    tok = fine.tok(name)
    one, two = fine.rows([row, {**row, column: f"tell: {row[column]}"}])
    one.prefix = "tell: "
    found = task.load(kind).under(options).encode([one, two], tok, options)
    ids = found["input_ids"]
    half = len(ids) // 2
    assert [list(part) for part in (ids[i] for i in range(half))] == [
        list(part) for part in (ids[i] for i in range(half, 2 * half))
    ]
    assert half


def test_words_take_no_prefix():
    [row] = fine.rows([{"tokens": ["a"], "ner_tags": ["O"]}])
    row.prefix = "tell: "
    with pytest.raises(UserError, match="a word without a tag"):
        task.load("tag").encode([row], fine.tok("bert"), task.load("tag").options(label_names=("O", "B")))


def test_the_log_keeps_what_a_resumed_run_had_written(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.log({"step": step, "loss": 1.0})
        folder.log({"step": step, "eval_recall[a\u2028b]": 0.5})
    whole = (tmp_path / "log.jsonl").read_text().split("\n")
    folder.forget_after(2)
    assert (tmp_path / "log.jsonl").read_text().split("\n") == whole
    folder.forget_after(2, unmeasured=True)
    assert (tmp_path / "log.jsonl").read_text().split("\n") == [*whole[:3], ""]
    folder.forget_after(1)
    assert (tmp_path / "log.jsonl").read_text().split("\n") == [*whole[:2], ""]
