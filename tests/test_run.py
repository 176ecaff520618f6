"""A run from end to end: repeatable, resumable to the bit, loadable by transformers."""

import errno
import json
import os
import random
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import children
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from hftune import batching, checkpoint, folder, prepare, recipe, run
from hftune.errors import UserError
from hftune.report import Reporter


def weights(path):
    return load_file(path / "run" / "model.safetensors")


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tokenizer_folder):
    """An uninterrupted run with dropout, masking and a worker, three epochs and a bit."""
    path = tmp_path_factory.mktemp("straight")
    source = tiny.mlm(path, max_steps=11, save_steps=2, eval_steps=100)
    source["data"]["num_workers"] = 1
    source["tokenizer"] = {"path": str(tokenizer_folder)}
    assert children.child(children.train, source) == 0
    return path, source


@pytest.mark.parametrize("half", [0, 1])
def test_a_killed_run_goes_on_to_the_same_bits(straight, tmp_path, half):
    path, source = straight
    step = random.randint(1, 5) + 5 * half  # another one each time
    print(f"killed in step {step}")  # which pytest shows if it fails
    again = {**source, "output": {"dir": str(tmp_path / "run")}}
    assert children.child(children.train_and_die, again, step) == -signal.SIGKILL
    assert children.child(children.train, again) == 0
    assert_same(weights(path), weights(tmp_path))
    steps = [
        entry["step"]
        for entry in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
        if "loss" in entry
    ]
    assert steps == list(range(1, 12)), "each step is logged once"


def test_a_killed_run_logs_the_lines_of_one_that_was_not(tokenizer_folder, tmp_path):
    """A line is of all steps since the one before, though the run went on from a step between."""
    logs = []
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
        source = tiny.mlm(tmp_path / name, max_steps=8, save_steps=2, logging_steps=3)
        source["tokenizer"] = {"path": str(tokenizer_folder)}
        if name == "killed":
            assert children.child(children.train_and_die, source, 6) == -signal.SIGKILL
        assert children.child(children.train, source) == 0
        lines = (tmp_path / name / "run" / "log.jsonl").read_text().splitlines()
        logs.append([{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines])
    assert [entry["step"] for entry in logs[0] if "loss" in entry] == [3, 6, 8]
    assert logs[0] == logs[1]


def test_evaluating_in_between_changes_nothing(straight, tmp_path):
    path, source = straight
    often = {**source, "output": {"dir": str(tmp_path / "run")}, "train": {**source["train"], "eval_steps": 2}}
    assert children.child(children.train, often) == 0
    assert_same(weights(path), weights(tmp_path))


def test_workers_change_nothing(straight, tmp_path):
    path, source = straight
    alone = {**source, "output": {"dir": str(tmp_path / "run")}, "data": {**source["data"], "num_workers": 0}}
    assert children.child(children.train, alone) == 0
    assert_same(weights(path), weights(tmp_path))


@pytest.mark.parametrize(("best", "times"), [(False, 2), (True, 3)])
def test_the_last_weights_are_measured_once(straight, tmp_path, best, times):
    """Two evaluations within three steps; one more only where the weights that stay may be others."""
    source = {**straight[1], "output": {"dir": str(tmp_path / "run")}}
    source["train"] = {**source["train"], "max_steps": 3, "eval_steps": 2, "load_best_model_at_end": best}

    def work():
        from hftune import evaluation

        calls, inner = [], evaluation.evaluate
        evaluation.evaluate = lambda *words, **more: calls.append(1) or inner(*words, **more)
        children.train(source)
        assert len(calls) == times

    assert children.child(work) == 0
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "low" in figures["loss"] or "low" in figures["perplexity"], "with intervals"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_stops_after_a_checkpoint(straight, tmp_path, number, status):
    path, source = straight
    again = {**source, "output": {"dir": str(tmp_path / "run")}}

    def work():
        from hftune.errors import Interrupted

        try:
            children.train_and_die(again, 3, number)
        except Interrupted as stop:
            raise SystemExit(stop.code) from None

    assert children.child(work) == status
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert (tmp_path / "run" / "checkpoints" / "step-3").is_dir()
    assert children.child(children.train, again) == 0
    assert_same(weights(path), weights(tmp_path))


@pytest.mark.parametrize("task", ["mlm", "classify"])
def test_two_ranks_compute_the_same_step(task, tokenizer_folder, tmp_path):
    """One step of plain descent without dropout: the weights say whether the gradients agree."""
    plain = {"optim": "sgd", "adam_beta1": 0.0, "learning_rate": 0.1, "max_grad_norm": 0, "weight_decay": 0.0}
    config = {**tiny.MODEL["config"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    found = []
    for number in (1, 2):
        place = tmp_path / str(number)
        place.mkdir()
        make = tiny.mlm(place) if task == "mlm" else tiny.classify(place, str(tokenizer_folder))
        source = {
            **make,
            "model": {"init": "bert", "config": config},
            "tokenizer": {"path": str(tokenizer_folder)},
            "train": {**make["train"], **plain, "max_steps": 1, "batch_size": 7},
        }
        alone = number == 1
        statuses = [children.child(children.train, source)] if alone else children.ranks(2, children.train, source)
        assert statuses == [0] * number
        figures = json.loads((place / "run" / "metrics.json").read_text())
        found.append((load_file(place / "run" / "model.safetensors"), figures))
    (one, figures), (two, again) = found
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-7, rtol=0)  # 0.1 times 1e-6
    assert again["loss"]["value"] == pytest.approx(figures["loss"]["value"], abs=1e-6)
    assert again["loss"]["count"] == figures["loss"]["count"]


BETAS = {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-3}
ADAM = {"optim": "adamw", **BETAS, "learning_rate": 1e-2, "warmup_ratio": 0.3}
DESCENT = {"optim": "sgd", "adam_beta1": 0.5, "learning_rate": 0.1}


def plain_loop(made, kind, rate):
    """(weights, entries of the log) of a recipe without dropout: torch's own optimizer and loss, a step at a time."""
    train, prepared = made.train, prepare.prepare(made, ["train"], Reporter(silent=True))
    model, rows = prepare.build_model(prepared).model.eval(), prepared.rows["train"]
    plan, entries = run.make_plan(made, rows), []
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if kind is torch.optim.AdamW:
        more = {"betas": (train.adam_beta1, train.adam_beta2), "eps": train.adam_epsilon, "fused": False}
    else:
        more = {"momentum": train.adam_beta1}
    optimizer = kind(groups, lr=train.learning_rate, **more)
    for step in range(train.max_steps):
        epoch, chosen = plan.rows(step)
        generators = [batching.generator(train.seed, epoch, int(row)) for row in chosen]
        batch = rows.batch(chosen, generators, step / train.max_steps)
        labels = batch.pop("labels").flatten()
        logits = model(**batch).logits.flatten(0, -2)
        smoothing = train.label_smoothing_factor
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm or torch.inf)
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate * rate(step)
        optimizer.step()
        entries.append((loss.item(), norm.item(), train.learning_rate * rate(step)))
    return model.state_dict(), np.array(entries)


def linear(step):
    """Of six steps two are for warmup."""
    return step / 2 if step < 2 else (6 - step) / 4


def cosine(step):
    return step / 3 if step < 3 else (1 + np.cos(np.pi * (step - 3) / 3)) / 2


@pytest.mark.parametrize("task", ["mlm", "classify"])
@pytest.mark.parametrize(
    ("kind", "rate", "settings"),
    [
        (torch.optim.AdamW, linear, {**ADAM, "weight_decay": 0.5, "label_smoothing_factor": 0.2, "max_grad_norm": 0.3}),
        (torch.optim.SGD, cosine, {**DESCENT, "warmup_steps": 3, "max_grad_norm": 0.4, "lr_scheduler_type": "cosine"}),
        (torch.optim.SGD, lambda _: 1.0, {**DESCENT, "max_grad_norm": 0, "lr_scheduler_type": "constant"}),
    ],
    ids=["adam", "descent", "unclipped"],
)
def test_a_run_is_the_plain_loop_of_its_recipe(kind, rate, settings, task, tokenizer_folder, tmp_path):
    """What a setting of training is called is what it does to the weights, and to the lines of the log."""
    source = tiny.mlm(tmp_path) if task == "mlm" else tiny.classify(tmp_path, str(tokenizer_folder))
    config = {**tiny.MODEL["config"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    source |= {"model": {"init": "bert", "config": config}, "tokenizer": {"path": str(tokenizer_folder)}}
    source["task"] |= {"mask_rate": 0.5, "mask_rate_end": 0.2} if task == "mlm" else {}
    source["train"] |= {"max_steps": 6, "batch_size": 12, **settings}
    made = recipe.from_dict(source)
    wanted, entries = plain_loop(made, kind, rate)
    run.train(made, Reporter(silent=True))
    found = load_file(tmp_path / "run" / "model.safetensors")
    for name, weight in found.items():
        torch.testing.assert_close(weight, wanted[name], atol=2e-5, rtol=0)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [[line[key] for key in ("loss", "grad_norm", "learning_rate")] for line in log if "loss" in line]
    np.testing.assert_allclose(told, entries, atol=1e-5)
    assert max(entries[:, 1]) > made.train.max_grad_norm, "there was something to clip"


def test_transformers_loads_the_run(straight):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    path, source = straight
    model, info = AutoModelForMaskedLM.from_pretrained(path / "run", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(path / "run")
    assert len(tokenizer) <= model.config.vocab_size
    assert tokenizer.model_max_length <= 128
    saved = recipe.load(path / "run" / "recipe.yaml")
    assert recipe.differences(saved, recipe.from_dict(source)) == []


def test_a_pipeline_shows_the_label_names(tmp_path, tokenizer_folder):
    from transformers import pipeline

    assert children.child(children.train, tiny.classify(tmp_path, str(tokenizer_folder))) == 0
    (answer,) = pipeline("text-classification", str(tmp_path / "run"))("What a day")
    assert answer["label"] in {"negative", "neutral", "positive"}
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    lines = (tmp_path / "run" / "predictions" / "validation.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == [row["text"] for row in tiny.lines("sentiment-tweets", limit=60)[40:]]
    assert figures["accuracy"]["value"] == pytest.approx(
        sum(r["prediction"] == r["reference"] for r in rows) / len(rows)
    )


GOOD = {
    "classify": [
        {"text": f"{word} {i % 7}", "label": label}
        for i in range(16)
        for word, label in (("good fine nice", "positive"), ("bad poor", "negative"), ("so so", "neutral"))
    ],
    "tag": [
        {"tokens": ["he", "is", "here", "in", f"{i % 7}", "ways"], "ner_tags": ["B-A", "O", "O", "B-B", "O", "I-B"]}
        for i in range(24)
    ],
}


@pytest.mark.parametrize(
    ("task", "names", "figure"),
    [
        ("classify", ["positive", "neutral", "negative"], "accuracy"),
        ("tag", ["I-B", "B-B", "O", "B-A"], "tag_accuracy"),
    ],
)
def test_what_is_trained_further_keeps_its_labels_in_their_order(task, names, figure, tmp_path, tokenizer_folder):
    rows = str(tiny.write_rows(tmp_path / "rows.jsonl", GOOD[task]))
    first = {
        "task": {"name": task, "max_length": 48, "label_names": names},
        "model": tiny.MODEL,
        "tokenizer": {"path": str(tokenizer_folder)},
        "data": {"train": rows, "validation": rows, "cache_dir": str(tmp_path / "cache")},
        "train": {"batch_size": 16, "max_steps": 60, "learning_rate": 3e-3},
        "output": {"dir": str(tmp_path / "first")},
    }
    then = {
        **first,
        "task": {"name": task, "max_length": 48, "class_weights": "balanced"},
        "model": {"path": str(tmp_path / "first")},
        "train": {"batch_size": 16, "max_steps": 1, "learning_rate": 1e-9},
        "output": {"dir": str(tmp_path / "then")},
    }
    counts = Counter(label for row in GOOD[task] for label in row.get("ner_tags", [row.get("label")]))
    for source in (first, then):
        assert children.child(children.train, source) == 0
        place = Path(source["output"]["dir"])
        assert json.loads((place / "metrics.json").read_text())[figure]["value"] == 1.0
        assert list(json.loads((place / "config.json").read_text())["id2label"].values()) == names
    saved = recipe.load(tmp_path / "then" / "recipe.yaml").task.options
    assert saved.label_counts == tuple(counts[name] for name in names)


def test_a_finished_run_is_not_run_again_but_extended(straight, tmp_path):
    source = {**straight[1], "output": {"dir": str(tmp_path / "run")}}
    assert children.child(children.train, source) == 0
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert children.child(children.train, source) == 0
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before
    other, told = {**source, "train": {**source["train"], "weight_decay": 0.5}}, Reporter(silent=True)

    def work():
        told.say = lines.append
        run.train(recipe.from_dict(other), told, allow=["train.weight_decay"])
        assert re.search(r"is finished \(11 steps\).*train\.max_steps.*output\.dir.*--fresh\Z", lines[-1])

    lines = []
    assert children.child(work) == 0
    tested = tmp_path / "run" / "predictions" / "test.jsonl"
    tested.parent.mkdir(exist_ok=True)
    tested.write_text("{}\n")
    longer = {**source, "train": {**source["train"], "max_steps": 14}}
    assert children.child(children.train, longer) == 0
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["step"] == 14
    assert not tested.exists(), "what the weights before said is no figure of these"
    assert f"14 steps, {told['tokens']:,} tokens in" in (tmp_path / "run" / "README.md").read_text()


def test_another_recipe_is_refused(straight):
    _path, source = straight
    other = recipe.from_dict({**source, "train": {**source["train"], "learning_rate": 5e-3}})
    with pytest.raises(UserError, match=r"train\.learning_rate: 0\.001 -> 0\.005"):
        folder.RunFolder.claim(other)
    folder.RunFolder.claim(other, allow=["train.learning_rate"])
    with pytest.raises(UserError, match=r"start over with --fresh\Z"):  # no --allow would bring the moments of another
        folder.RunFolder.claim(recipe.from_dict({**source, "train": {**source["train"], "optim": "sgd"}}))
    free = recipe.from_dict({**source, "train": {**source["train"], "logging_steps": 5, "micro_batch_tokens": 64}})
    folder.RunFolder.claim(free)


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ({"name": "classify", "label_names": ["a", "b"]}, {"label_names": ["a", "b", "c"]}),
        ({"name": "classify", "label_names": ["a", "b"]}, {"kind": "multi"}),
        ({"name": "tag", "label_names": ["O", "B"]}, {"label_names": ["B", "O"]}),
        ({"name": "rtd"}, {"generator_size": 0.5}),
        ({"name": "translate"}, {"form": "decoder-only"}),
    ],
)
def test_no_change_is_offered_that_no_resumed_run_can_take(tmp_path, task, change):
    made = {**tiny.mlm(tmp_path), "task": task}
    held = folder.RunFolder.claim(recipe.from_dict(made))
    held.set("finished")
    del held
    with pytest.raises(UserError, match=r"start over with --fresh\Z"):
        folder.RunFolder.claim(recipe.from_dict({**made, "task": task | change}))


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 300}, {"lowercase": True}, {"path": "elsewhere", "train": None, "vocab_size": 8000}],
)
def test_a_run_keeps_its_tokenizer_whatever_is_allowed(tmp_path, change):
    """It went on with its own, while its recipe named the other."""
    made = {**tiny.mlm(tmp_path), "tokenizer": {"train": "wordpiece", "vocab_size": 200}}
    held = folder.RunFolder.claim(recipe.from_dict(made))
    held.set("finished")
    del held
    other = recipe.from_dict({**made, "tokenizer": made["tokenizer"] | change})
    with pytest.raises(UserError, match=r"with another tokenizer\.(.|\n)*start over with --fresh\Z"):
        folder.RunFolder.claim(other, allow=[f"tokenizer.{name}" for name in change])


@pytest.fixture
def four(straight, tmp_path):
    """A finished run of four steps."""
    train = {**straight[1]["train"], "max_steps": 4, "lr_scheduler_type": "constant", "weight_decay": 0.1}
    source = {**straight[1], "output": {"dir": str(tmp_path / "run")}, "train": train}
    assert children.child(children.train, source) == 0
    return source


def changed(source, **train):
    """A longer run with other settings, and what the user allows for it."""
    return {**source, "train": {**source["train"], "max_steps": 6, **train}}, [f"train.{name}" for name in train]


def test_what_the_user_lets_change_takes_effect(four, tmp_path):
    wanted = {"learning_rate": 0.1, "weight_decay": 0.5, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6}
    source, allow = changed(four, **wanted)
    assert children.child(lambda: children.train(source, allow=allow)) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in log if "loss" in line] == [1e-3] * 4 + [0.1] * 2
    saved = json.loads((tmp_path / "run" / "checkpoints" / "step-6" / "optimizer.json").read_text())["groups"]
    assert {group["weight_decay"] for group in saved} == {0.0, 0.5}
    assert all((g["lr"], g["betas"], g["eps"]) == (0.1, [0.8, 0.9], 1e-6) for g in saved)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"optim": "sgd"}, r"train\.optim: 'adamw' -> 'sgd'"),
        ({"optim": "adafactor"}, r"train\.optim: 'adamw' -> 'adafactor'"),
        ({"layerwise_lr_decay": 0.9}, r"train\.layerwise_lr_decay: 1\.0 -> 0\.9"),
    ],
)
def test_moments_are_not_taken_for_those_of_another_optimizer(four, train, words):
    source, allow = changed(four, **train)

    def work():
        with pytest.raises(UserError, match=f"{words}(.|\n)*--fresh"):
            children.train(source, allow=allow)

    assert children.child(work) == 0


def test_moments_do_not_fit_another_optimizer_or_other_groups():
    weight = torch.zeros(1, requires_grad=True)
    adam, other = torch.optim.AdamW([weight]), torch.optim.AdamW([weight, torch.zeros(1)])
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    saved, more, others = (made.state_dict()["param_groups"] for made in (adam, other, sgd))
    with pytest.raises(UserError, match="another optimizer"):
        checkpoint._same_groups(saved, others)
    with pytest.raises(UserError, match="other groups of trained parameters"):
        checkpoint._same_groups(saved, more)


@pytest.mark.parametrize("saved", [{"bias": torch.zeros(1)}, {"weight": torch.zeros(4, 4), "other": torch.zeros(1)}])
def test_weights_are_not_taken_for_others(saved):
    """Neither by their names nor by stretching what could be stretched."""
    with pytest.raises(UserError, match="lacks, or has in another shape"):
        checkpoint.load_trained_state(torch.nn.Linear(4, 4), saved)


def test_how_text_is_written_may_change_where_it_chooses_no_checkpoint(tmp_path):
    options = {"name": "clm", "kind": "prompt", "max_new_tokens": 128, "max_length": 32}
    made = {**tiny.mlm(tmp_path), "task": options}
    held = folder.RunFolder.claim(recipe.from_dict(made))
    held.set("finished")
    del held
    changed = {**made, "task": {**options, "max_new_tokens": 8, "num_beams": 2}}
    folder.RunFolder.claim(recipe.from_dict(changed))
    chosen = {**changed, "train": {**made["train"], "metric_for_best_model": "rouge1"}}
    with pytest.raises(UserError, match=r"task\.max_new_tokens: 128 -> 8; task\.num_beams: 1 -> 2"):
        folder.RunFolder.claim(recipe.from_dict(chosen), allow=["train.metric_for_best_model"])
    longer = {**changed, "task": {**changed["task"], "max_length": 40}}
    with pytest.raises(UserError, match=r"recipe \(task\.max_length: 32 -> 40\)"):
        folder.RunFolder.claim(recipe.from_dict(longer))


def test_a_run_that_ended_leaves_its_folder_to_the_next_in_the_same_process(tmp_path, tokenizer_folder, monkeypatch):
    held, begin = [], folder.RunFolder.begin
    monkeypatch.setattr(
        folder.RunFolder, "begin", lambda self, *given, **facts: (held.append(self), begin(self, *given, **facts))
    )
    made = recipe.from_dict(tiny.classify(tmp_path, str(tokenizer_folder), max_steps=1))
    for _ in range(2):
        run.train(made, Reporter(silent=True), fresh=True)
    assert len(held) == 2


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_is_no_runs_is_left_as_it_is(fresh, tmp_path, tokenizer_folder):
    """Whoever names the wrong folder loses nothing, with --fresh as without."""
    made = recipe.from_dict(tiny.classify(tmp_path, str(tokenizer_folder), max_steps=1))
    place = Path(made.output.dir)
    for name in ("thesis.txt", "checkpoints/step-1/thesis.txt", ".models/thesis.txt", "predictions/.old/thesis.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("years of work")
    with pytest.raises(UserError):
        folder.RunFolder.claim(made, fresh=fresh)
    assert len(list(place.rglob("thesis.txt"))) == 4


def test_without_a_name_it_is_the_run_that_was_worked_on_last(tmp_path):
    with pytest.raises(UserError, match="no run under"):
        folder.newest(tmp_path)
    for name, when in (("a", 100), ("b", 300), ("c", 200), ("no run", 400)):
        (tmp_path / name).mkdir()
        for file in (folder.STATE, *([folder.RECIPE] if name != "no run" else [])):
            (tmp_path / name / file).write_text("{}")
            os.utime(tmp_path / name / file, (when, when))
    os.utime(tmp_path / "a" / folder.RECIPE, (500, 500))  # to read or touch a recipe is no work
    assert folder.newest(tmp_path) == tmp_path / "b"


def test_a_second_start_names_the_first(straight):
    _path, source = straight
    held = folder.RunFolder.claim(recipe.from_dict(source))
    with pytest.raises(UserError, match="another process is training"):
        folder.RunFolder.claim(recipe.from_dict(source))
    del held


def test_a_file_system_without_locks_is_no_other_process(tmp_path, tokenizer_folder, monkeypatch):
    """Whoever waited for that process waited for ever."""

    def none(file, kind):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(UserError, match="cannot be locked against a second run: Function not implemented"):
        folder.RunFolder.claim(recipe.from_dict(tiny.classify(tmp_path, str(tokenizer_folder))))


def test_a_run_is_made_where_a_name_is_no_utf_8(tmp_path, tokenizer_folder, monkeypatch):
    """As names of an older system are: the run ended with a traceback before its first step."""
    there = tmp_path / os.fsdecode(b"caf\xe9")
    there.mkdir()
    monkeypatch.chdir(there)
    monkeypatch.setattr(sys, "argv", ["hftune", "finetune", os.fsdecode(b"caf\xe9.yaml")])
    children.train(tiny.classify(tmp_path, str(tokenizer_folder), max_steps=1))
    state = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert state["directory"] == f"{tmp_path}/caf\\udce9"
    assert "udce9.yaml" in state["command"]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"eval": {"metrics": ["foo"]}}, "eval.metrics"),
        ({"train": {"metric_for_best_model": "accuracy"}}, "train.metric_for_best_model"),
        ({"eval": {"stride": 8}}, "eval.stride"),
    ],
)
def test_settings_that_contradict_each_other_end_a_run_before_it_begins(changes, where, tmp_path, monkeypatch):
    source = tiny.mlm(tmp_path)
    source |= {key: source.get(key, {}) | block for key, block in changes.items()}
    monkeypatch.setattr(prepare, "prepare", lambda *_, **__: pytest.fail("rows were read"))
    with pytest.raises(UserError) as fault:
        run.train(recipe.from_dict(source), Reporter(silent=True))
    assert fault.value.where == where
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("other", [{"b": "z"}, {"c": "d", "d": "d"}])
def test_labels_that_changed_end_a_run_that_is_resumed_whatever_is_allowed(other, tokenizer_folder, tmp_path):
    """A name that sorts elsewhere, and one more name."""
    source = tiny.classify(tmp_path, str(tokenizer_folder), max_steps=2)
    texts = [row["text"] for row in tiny.lines("sentiment-tweets", limit=24)]
    names = "abca" if "b" in other else "abcd"

    def write(change):
        rows = [{"text": text, "label": change.get(names[i % 4], names[i % 4])} for i, text in enumerate(texts)]
        for split in ("train", "validation"):
            source["data"][split] = str(tiny.write_rows(tmp_path / f"{split}.jsonl", rows))

    write({"d": "a"})
    assert children.child(children.train, source) == 0
    write(other)
    source["train"]["max_steps"] = 4

    def work(allow):
        with pytest.raises(UserError, match="id2label was a, b, c when step 2 was saved, and would be a, "):
            children.train(source, allow=allow)

    for allow in ([], ["data.train", "data.validation"]):
        assert children.child(work, allow) == 0


def with_workers(source, start):
    import multiprocessing

    multiprocessing.set_start_method(start, force=True)
    children.train(source)


def test_workers_are_forked_whatever_python_would_do(tmp_path, tokenizer_folder):
    """From 3.14 on it would send them the rows and the task, which cannot be sent: a traceback at the first step."""
    source = tiny.classify(tmp_path, str(tokenizer_folder), max_steps=2)
    source["data"]["num_workers"] = 1
    assert children.child(with_workers, source, "forkserver") == 0
