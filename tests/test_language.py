"""Language models measured: against the plainest computation in float64, at any batch size and number of processes."""

import copy
import itertools
import json
import math
from functools import cache

import children
import fine
import numpy as np
import pytest
import tiny
import torch
import zoo
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from hftune import consistency, evaluation, language, loop, models, prepare, recipe, shortcuts, steps, store, views
from hftune import task as tasks
from hftune.batching import EVALUATION, generator
from hftune.causal import bounds
from hftune.errors import UserError
from hftune.report import Reporter
from hftune.schema import Eval, Model
from hftune.task import IGNORE

KINDS = {"gpt2": "clm", "llama": "clm", "t5": "span", "bert": "mlm", "xlnet": "plm"}
QUIET = Eval(resamples=0)


@cache
def texts(number=13):
    """Documents of very different length, an uneven number; some are empty, some long."""
    found = [row["text"] for row in tiny.lines("docs-text", limit=number)]
    return [text[: (i * 137) % 300] for i, text in enumerate(found)]


@cache
def split(name, max_length=24, **more):
    """Rows as they are evaluated."""
    task = tasks.load(KINDS[name])
    options = task.options(max_length=max_length, **more).evaluating()
    rows = fine.rows([{"text": text} for text in texts()])
    return steps.Rows(
        store.in_memory(task.encode(rows, zoo.tok(name), options)), task.under(options), zoo.tok(name), options
    )


@cache
def model(name):
    """A tiny model far from uniform, so that a wrong figure is seen."""
    rows = split(name)
    block = Model(init=name, config=zoo.SIZE)
    settings = rows.task.config(rows.options, rows.tokenizer)
    made = models.build(block, rows.task.head, rows.tokenizer, settings=settings, seed=1).model.eval()
    with torch.no_grad():
        for weights in made.parameters():
            weights.mul_(1.5)
    return made


def ways(name, made=None):
    rows = split(name)
    batch = rows.batch([0], [generator(0, 0)])
    return shortcuts.choose(made or model(name), batch, rows.task, rows.options)


def reference(name, made):
    """The loss, row by row without any padding that could be left out, from the model's own logits."""
    total, count = 0.0, 0
    for row in range(len(split(name))):
        batch = split(name).batch([row], [generator(0, 0, row, EVALUATION)])
        if name != "xlnet":
            real = batch["attention_mask"].bool()
            batch = {
                k: v[:, : real.shape[1]][real[:, : v.shape[1]]][None] for k, v in batch.items() if k != "labels"
            } | {"labels": batch["labels"] if name == "t5" else batch["labels"][real][None]}
        labels = batch.pop("labels")
        logits = made(**batch, **({"labels": labels.clamp(min=-100)} if name == "t5" else {})).logits
        nll = -logits.double().log_softmax(-1)
        for place in (labels[0] != IGNORE).nonzero():
            total, count = total + float(nll[0, place, labels[0, place]]), count + 1
    return total / count


def figures(name, budget, made=None):
    """Loss and perplexity, as hftune gives them."""
    made = made or model(name)
    settings = Eval(resamples=0, batch_tokens=budget)
    found = evaluation.evaluate(made, split(name), Accelerator(cpu=True), settings, shortcuts=ways(name, made))
    return [found[figure]["value"] for figure in ("loss", "perplexity")]


def budgets(name):
    """Padded tokens of 1, 7 and 32 of the longest rows."""
    longest = int(split(name).data.lengths.max())
    return [1, 7 * longest, 32 * longest]


@cache
def truth(name):
    """The reference on the model in float64 (XLNet's is in float32: transformers computes its positions so)."""
    made = model(name) if name == "xlnet" else copy.deepcopy(model(name)).double()
    with torch.no_grad():
        return reference(name, made)


@pytest.mark.parametrize("name", KINDS)
def test_loss_and_perplexity_are_those_of_the_plain_computation(name):
    expected = truth(name)
    for budget in budgets(name):
        loss, perplexity = figures(name, budget)
        assert loss == pytest.approx(expected, abs=1e-6, rel=0)
        assert perplexity == pytest.approx(math.exp(expected), rel=1e-6)
    if name != "xlnet":
        found = figures(name, budgets(name)[1], copy.deepcopy(model(name)).double())
        assert found == pytest.approx([expected, math.exp(expected)], abs=1e-6, rel=0)


def write_figures(path):
    """One rank's figures of all models at all batches."""
    found = {name: [figures(name, budget) for budget in budgets(name)] for name in KINDS}
    rank = Accelerator(cpu=True).process_index
    (path / f"{rank}.json").write_text(json.dumps([Accelerator(cpu=True).num_processes, found]), encoding="utf-8")


def test_two_processes_give_the_same_figures(tmp_path):
    for name in KINDS:
        assert len(split(name)) % 2 == 1, "the rows must not divide evenly"
        model(name)  # made once, before the ranks are forked
    assert children.ranks(2, write_figures, tmp_path) == [0, 0]
    for rank in range(2):
        number, found = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert number == 2
        for name in KINDS:
            expected = truth(name)
            for loss, perplexity in found[name]:
                assert loss == pytest.approx(expected, abs=1e-6, rel=0)
                assert perplexity == pytest.approx(math.exp(expected), rel=1e-6)


# ── documents ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", KINDS)
def test_documents_are_put_together_again(name, tmp_path):
    """However a document was cut: its line has the sums of its rows, and its own bytes, words and figures."""
    rows = split(name)
    sums, counts = loop.evaluate_rows(model(name), rows, Accelerator(cpu=True), budget=500)["loss"]
    found = evaluation.evaluate(
        model(name),
        rows,
        Accelerator(cpu=True),
        QUIET,
        shortcuts=shortcuts.NONE,
        predictions=tmp_path / "p" / "test.jsonl",
    )
    lines = [json.loads(line) for line in (tmp_path / "p" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [text for text in texts() if text.strip()]
    assert [line["bytes"] for line in lines] == [len(text.encode()) for text in kept]
    assert [line["words"] for line in lines] == [len(text.split()) for text in kept]
    assert sum(line["tokens"] for line in lines) == counts.sum() > len(rows)
    assert math.fsum(line["nll"] for line in lines) == pytest.approx(sums.sum(), abs=1e-4)
    at = 0
    for line in lines:  # rows follow each other; each document has at least one
        own = [sums[at], counts[at]]
        at += 1
        while at < len(rows) and own[1] < line["tokens"]:
            own, at = [own[0] + sums[at], own[1] + counts[at]], at + 1
        assert [line["nll"], line["tokens"]] == pytest.approx(own, abs=1e-4)
        assert line["score"]["loss"] == pytest.approx(line["nll"] / line["tokens"])
        assert ("bits_per_byte" in line["score"]) == rows.task.whole_text == ("bits_per_byte" in found)
    assert found["loss"]["count"] == len(kept) < len(rows)
    assert found["loss"]["tokens"] == counts.sum()
    start = lines[-1]["start"]
    assert start
    assert start[:20].split()[0].lower() in kept[-1].lower()


def test_a_limit_counts_documents_not_their_pieces():
    rows, made = split("gpt2"), model("gpt2")
    whole = evaluation.evaluate(made, rows, Accelerator(cpu=True), QUIET, shortcuts=shortcuts.NONE)
    for limit in (1, 4, 99):
        settings = Eval(resamples=0, limit=limit)
        found = evaluation.evaluate(made, rows, Accelerator(cpu=True), settings, shortcuts=shortcuts.NONE)
        kept = [text for text in texts() if text][:limit]
        assert found["bits_per_byte"]["count"] == len(kept)
        size = len("".join(kept).encode())
        nll = found["loss"]["value"] * found["loss"]["tokens"]
        assert found["bits_per_byte"]["value"] == pytest.approx(nll / math.log(2) / size, rel=1e-9)
    assert found == whole


def of_texts(kind, values):
    """Figures by document of texts that a causal model reads with a tokenizer of that kind; every loss is 2 nats."""
    task = tasks.load("clm")
    options = task.options(max_length=8)
    rows = fine.encoded(task.under(options), kind, options, [{"text": text} for text in values])
    counts = rows.data.lengths - 1
    table = language.documents((2.0 * counts, counts), rows)
    return language.figures({"perplexity": table}, rows, QUIET, intervals=False), table


def test_bits_per_byte_are_of_texts_that_the_tokenizer_keeps():
    """A token for what it cannot spell is easily learned, whatever the text was."""
    known, strange = ["plain words of the text, and so on", "more words"], "ሰላም ለዓለም ሁሉ"
    for values in (known, [strange, *known], [*known, strange]):
        lost = strange in values
        found, table = of_texts("xlnet", values)
        assert [one["bytes"] for one in table] == [None if t == strange else len(t.encode()) for t in values]
        for name in ("bits_per_byte", "word_perplexity"):
            assert (found[name]["value"] is None) == lost
            assert not lost or "unknown tokens" in found[name]["why"]
        assert found["loss"]["value"] == 2
        assert of_texts("gpt2", values)[0]["bits_per_byte"]["value"] > 0, "bytes spell everything"


# ── sliding windows ─────────────────────────────────────────────────────────────────────────────────────


def ids_of(text):
    """A document as the model sees it, between its bounds."""
    start, end = bounds(zoo.tok("gpt2"))
    return [start, *zoo.tok("gpt2")(text, add_special_tokens=False)["input_ids"], end]


def token_by_token(made, ids, window, stride):
    """Each token's loss from a forward of its own, over what its window holds before it."""
    total, last = 0.0, len(ids) - 1
    for target in range(1, len(ids)):
        moves = max(0, -(-(target - window) // stride))  # of the window, until it holds the target
        end = min(window + moves * stride, last)
        context = torch.tensor([ids[max(0, end - window) : target]])
        total -= float(made(context).logits[0, -1].double().log_softmax(-1)[ids[target]])
    return total


@pytest.mark.parametrize("stride", [1, 5, 16])
@torch.no_grad()
def test_sliding_windows_are_the_token_by_token_definition(stride):
    made, window = model("gpt2"), 16
    rows, kept = split("gpt2", max_length=window), [text for text in texts() if text]
    expected = [token_by_token(made, ids_of(text), window, stride) for text in kept[:5]]
    for tokens in (1, 200, 4096):
        settings = Eval(resamples=0, batch_tokens=tokens, stride=stride, limit=5)
        seen = language.sliding(rows, settings)
        by_row = language.measured(made, seen, Accelerator(cpu=True), settings, shortcuts.Shortcuts("fused"))["loss"]
        found = language.documents(by_row, seen, rows)
        assert [one["nll"] for one in found] == pytest.approx(expected, abs=1e-4, rel=1e-6)
        assert [one["tokens"] for one in found] == [len(ids_of(text)) - 1 for text in kept[:5]]
        assert [one["bytes"] for one in found] == [len(text.encode()) for text in kept[:5]]
    if stride == 5:
        told = evaluation.evaluate(made, rows, Accelerator(cpu=True), settings, shortcuts=shortcuts.Shortcuts("fused"))
        assert told["loss"]["value"] == pytest.approx(sum(expected) / told["loss"]["tokens"], abs=1e-6)
        assert told["loss"]["signature"].startswith("max_length:16|stride:5|")


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(any), st.integers(8, 24), st.integers(1, 24))
def test_windows_score_each_token_once_in_order(sizes, window, stride):
    """Of random documents, cut as the task cuts them: every token but the context is a target once, none is too long."""
    stride = min(stride, window)
    documents = [[-1, *range(100 * i, 100 * i + size)] for i, size in enumerate(sizes) if size]
    cut, begins = [], []
    for ids in documents:
        number = -(-(len(ids) - 1) // window)
        bounds = [j * (len(ids) - 1) // number for j in range(number + 1)]
        cut += [ids[a : b + 1] for a, b in itertools.pairwise(bounds)]
        begins += [1] + [0] * (number - 1)
    data = store.in_memory({"input_ids": cut, "begins": np.array(begins)})
    view = views.Sliding(data, window, stride)
    scored = [[] for _ in documents]
    for row in range(len(view)):
        ids, trained = view[row]["input_ids"].tolist(), view[row]["trained"]
        assert len(ids) == view.lengths[row] <= window + 1
        assert trained[0] == 0
        own = documents[view.documents[row]]
        at = own.index(ids[0])
        assert own[at : at + len(ids)] == ids, "a window is a stretch of its document"
        first = int(np.flatnonzero(trained)[0])
        assert at == 0 or first > window - stride, "a later target has its context"
        assert trained[first:].all()
        scored[view.documents[row]] += ids[first:]
    assert scored == [ids[1:] for ids in documents]


# ── pseudo-perplexity ───────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_pseudo_perplexity_masks_each_token_in_turn(tmp_path):
    rows, made, limit = split("bert"), model("bert"), 6
    mask, special = rows.tokenizer.mask_token_id, set(rows.tokenizer.all_special_ids)
    expected, tokens = [0.0] * limit, [0] * limit
    for row, document in enumerate(rows.data.documents):
        ids = torch.from_numpy(rows.data[row]["input_ids"].astype(np.int64))
        for place in range(len(ids)):
            if document >= limit or int(ids[place]) in special:
                continue
            masked = ids.clone()
            masked[place] = mask
            logits = made(input_ids=masked[None]).logits[0, place].double()
            expected[document] -= float(logits.log_softmax(-1)[ids[place]])
            tokens[document] += 1
    for budget in (1, 300, 4096):
        settings = Eval(batch_tokens=budget, pseudo_perplexity=True, limit=limit, resamples=50)
        found = evaluation.evaluate(
            made, rows, Accelerator(cpu=True), settings, shortcuts=ways("bert"), predictions=tmp_path / "test.jsonl"
        )
        assert found["pseudo_loss"]["value"] == pytest.approx(sum(expected) / sum(tokens), abs=1e-6)
        assert found["pseudo_perplexity"]["value"] == pytest.approx(math.exp(sum(expected) / sum(tokens)), rel=1e-6)
        assert found["pseudo_perplexity"]["low"] < found["pseudo_perplexity"]["value"]
        assert (found["pseudo_loss"]["count"], found["pseudo_loss"]["tokens"]) == (limit, sum(tokens))
        lines = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [line["pseudo_nll"] for line in lines] == pytest.approx(expected, abs=1e-4)
        assert [line["pseudo_tokens"] for line in lines] == tokens
    assert "pseudo_loss" not in evaluation.evaluate(made, rows, Accelerator(cpu=True), QUIET, shortcuts=shortcuts.NONE)


@pytest.mark.parametrize(
    ("name", "options", "settings", "message"),
    [
        ("mlm", {}, {"stride": 8}, "no windows that could slide"),
        ("clm", {"kind": "prompt"}, {"stride": 8}, "no windows that could slide"),
        ("clm", {"max_length": 16}, {"stride": 17}, "windows of 16 tokens that move on by 17 would pass over tokens"),
        ("clm", {}, {"pseudo_perplexity": True}, "masks no single tokens"),
        ("mlm", {"next_sentence": "nsp"}, {"pseudo_perplexity": True}, "masks no single tokens"),
    ],
)
def test_views_that_the_rows_do_not_have_are_faults(name, options, settings, message, tmp_path):
    made = recipe.from_dict(tiny.mlm(tmp_path) | {"task": {"name": name, **options}, "eval": settings})
    task = tasks.load(name).under(made.task.options)
    (fault,) = consistency.views(made, task, made.task.options)
    assert message in fault.message
    assert fault.where == f"eval.{next(iter(settings))}"
    assert fault.hint
    sound = recipe.from_dict(tiny.mlm(tmp_path) | {"task": {"name": name, **options}})
    assert not list(consistency.views(sound, task, sound.task.options))


def test_preparing_refuses_what_cannot_be_measured(tmp_path):
    source = tiny.mlm(tmp_path) | {"eval": {"stride": 8}}
    with pytest.raises(UserError, match="no windows that could slide"):
        prepare.prepare(recipe.from_dict(source), ["validation"], Reporter(silent=True))


@pytest.mark.parametrize(
    ("options", "gives"),
    [
        ({"name": "mlm", "next_sentence": "nsp"}, True),
        ({"name": "clm"}, True),
        ({"name": "tag"}, False),
        ({"name": "qa"}, False),
    ],
)
def test_perplexity_chooses_a_checkpoint_only_where_there_is_one(options, gives):
    made = recipe.from_dict(
        {
            "task": options,
            "model": {"init": "bert"},
            "data": {"train": "rows.jsonl", "validation": "rows.jsonl"},
            "train": {"metric_for_best_model": "perplexity"},
            "output": {"dir": "run"},
        }
    )
    faults = consistency.check(made, tasks.load(made.task.name).under(made.task.options))
    assert [fault.where for fault in faults] == ([] if gives else ["train.metric_for_best_model"])


@pytest.mark.parametrize(
    ("options", "metric", "settings", "said"),
    [
        ({"name": "mlm"}, "pseudo_perplexity", {}, "computed only where the recipe says so"),
        ({"name": "mlm"}, "pseudo_loss", {"pseudo_perplexity": True}, None),
        ({"name": "mlm"}, "bits_per_byte", {}, "not that of all of a text"),
        ({"name": "clm"}, "bits_per_byte", {}, None),
        ({"name": "clm", "kind": "prompt"}, "word_perplexity", {}, "not that of all of a text"),
        ({"name": "clm", "kind": "prompt"}, "perplexity", {}, None),
        ({"name": "classify"}, "loss", {}, "not over a vocabulary"),
    ],
)
def test_a_figure_of_the_losses_is_refused_where_it_would_not_be_computed(options, metric, settings, said, tmp_path):
    made = recipe.from_dict(tiny.mlm(tmp_path) | {"task": options, "eval": {"metrics": [metric], **settings}})
    task = tasks.load(made.task.name).under(made.task.options)
    for faults in (consistency.measuring(made, task), consistency.check(made, task)):
        assert [said in fault.message for fault in faults] == ([] if said is None else [True])
        assert all(fault.where == "eval.metrics" and fault.hint for fault in faults)


def test_a_figure_that_is_not_computed_between_chooses_no_checkpoint(tmp_path):
    for metric, settings in (("bits_per_byte", {}), ("pseudo_perplexity", {"pseudo_perplexity": True})):
        source = tiny.mlm(tmp_path, metric_for_best_model=metric)
        if settings:
            source["eval"] = {"metrics": [metric], **settings}
        made = recipe.from_dict(source)
        (fault,) = consistency.check(made, tasks.load("mlm").under(made.task.options))
        assert (fault.message, fault.where) == (f"the evaluation gives no {metric}", "train.metric_for_best_model")
