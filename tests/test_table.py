"""Every task on every architecture that makes sense: it learns, at any split, waiting for nothing, reloads, is killed.

The table is held against what `hftune check` accepts, so that neither forgets a pair.
"""

import copy
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace

import children
import pytest
import splits
import tiny
import torch
import waits
import zoo
from accelerate import Accelerator
from safetensors.torch import load_file

from hftune import distributed, heads, hub, loop, models, preflight, prepare, recipe, run, shortcuts, task, tokenizer
from hftune.batching import Plan
from hftune.errors import UserError
from hftune.report import Reporter
from hftune.schema import Model
from hftune.steps import Steps

SHORT = {"max_length": 40}
SEQUENCE = {**SHORT, "max_target_length": 24, "max_new_tokens": 4}
VOCABULARY, LABELS = 4.5, 0.9  # a loss over 480 entries begins at 6.2, one over three labels at 1.1
# task: (its options, rows of a bundled set, columns, what twenty steps on eight rows must bring its loss below)
TASKS = {
    "mlm": (SHORT, "docs-text", {}, VOCABULARY),
    "clm": (SHORT, "docs-text", {}, VOCABULARY),
    "plm": (SHORT, "docs-text", {}, VOCABULARY),
    "span": (SHORT, "docs-text", {}, VOCABULARY),
    "denoise": (SHORT, "docs-text", {}, VOCABULARY),
    "rtd": (SHORT, "docs-text", {}, 50 * LABELS + VOCABULARY),
    "classify": (SHORT, "sentiment-tweets", {}, LABELS),
    "tag": (SHORT, "address-tokens", {}, VOCABULARY),
    "qa": ({"max_length": 64, "stride": 8, "unanswerable": True}, "address-qa", {}, VOCABULARY),
    "choice": ({**SHORT, "context": True}, "address-choice", {}, 1.75),  # six choices or so: 1.82
    "translate": (
        SEQUENCE,
        "translation-ui-en-de",
        {"source": "translation.en", "target": "translation.de"},
        VOCABULARY,
    ),
    "summarize": (SEQUENCE, "code-summary", {}, VOCABULARY),
}
T5, BARTS = ("t5", "mt5", "longt5"), ("bart", "mbart")
ALL = (*zoo.ENCODERS, "xlnet", *zoo.DECODERS, "t5", "mt5", "bart", "mbart")
TABLE = {
    "mlm": zoo.ENCODERS,
    "clm": (*zoo.DECODERS, "bart"),
    "plm": ("xlnet",),
    "span": zoo.SEQ2SEQ,
    "denoise": zoo.SEQ2SEQ,
    "rtd": ("electra", "albert"),
    "classify": ALL,
    "tag": (*zoo.ENCODERS, "xlnet", *zoo.DECODERS, "t5", "mt5"),
    "qa": ALL,
    "choice": (*zoo.ENCODERS, "xlnet"),
    "translate": (*zoo.SEQ2SEQ, *zoo.DECODERS),
    "summarize": (*zoo.SEQ2SEQ, *zoo.DECODERS),
}
# accepted, but of no use: decoders of machine translation alone, and what check cannot know without the tokenizer
ODD = {("clm", name) for name in ("mbart", "marian", "pegasus")}
WITHOUT_MARKS = {
    *(("denoise", name) for name in (*T5, "marian", "pegasus", "m2m_100")),
    *(("span", name) for name in (*BARTS, "marian", "m2m_100")),
}
# further origins of a model, and what an architecture needs to be of use
MORE = [
    ("mlm", "bert folder"),
    ("classify", "bert folder"),
    ("classify", "bert hub"),
    ("clm", "gpt2 folder"),
    ("clm", "bert decoder"),
    ("rtd", "bert whole"),
    ("rtd", "deberta-v2 whole"),
    ("translate", "bert warm"),
    ("summarize", "bert warm"),
]
PAIRS = [(kind, name) for kind, names in TABLE.items() for name in names if (kind, name) not in WITHOUT_MARKS] + MORE
# in `make test`: each task and each architecture once or more; in `make test-slow` all the others
QUICK = {
    *(("mlm", name) for name in ("bert", "distilbert", "deberta-v2", "modernbert")),
    *(("clm", name) for name in ("gpt2", "gpt_neox", "qwen3")),
    *(("plm", "xlnet"), ("rtd", "electra"), ("span", "t5"), ("span", "longt5"), ("denoise", "bart")),
    *(("classify", name) for name in ("albert", "bert hub")),
    *(("tag", "roberta"), ("qa", "mt5"), ("choice", "albert")),
    *(("translate", name) for name in ("marian", "mbart", "m2m_100", "llama", "bert warm")),
    ("summarize", "pegasus"),
}
MARKED = [pytest.param(*pair, marks=[] if pair in QUICK else [pytest.mark.slow]) for pair in PAIRS]
SPECIAL = {
    "decoder": {"model": {"is_decoder": True}},
    "whole": {"task": {"generator_size": 1, "generator_layers": 0.5}},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Tokenizers, pretrained models and encoded rows, each made once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def hub_cache(home, monkeypatch):
    """A cache of the Hub's layout; the Hub itself does not answer."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.answers.cache_clear()
    yield
    hub.answers.cache_clear()


def tokenizer_of(name, home):
    """Folder of an architecture's own tokenizer."""
    folder = home / "tokenizers" / name
    if not folder.exists():
        tokenizer.save(zoo.tok(name), folder)
    return str(folder)


def pretrained(name, home):
    """Folder of a model of new weights with the head of its pretraining."""
    folder = home / "models" / name
    if not folder.exists():
        zoo.build(name, zoo.CLM if name in zoo.DECODERS else zoo.MLM).model.save_pretrained(folder)
        tokenizer.save(zoo.tok(name), folder)
        shutil.copytree(folder, home / "hub" / f"models--tiny--{name}" / "snapshots" / ("0" * 40))
        refs = home / "hub" / f"models--tiny--{name}" / "refs"
        refs.mkdir()
        (refs / "main").write_text("0" * 40)
    return str(folder)


def origin(name, how, home):
    """The block `model`."""
    if how in ("folder", "hub", "warm"):
        folder = pretrained(name, home)
        return {"warm": {"encoder": folder, "decoder": folder}, "folder": {"path": folder}}.get(
            how, {"path": f"tiny/{name}"}
        )
    bounded = name not in {"xlnet", "modernbert", *T5}
    positions = {"max_position_embeddings": 128} if bounded else {}
    return {"init": name, "config": {**zoo.SIZE, **positions, **SPECIAL.get(how, {}).get("model", {})}}


def source(kind, name, path, home, **train):
    """A recipe of a pair of the table."""
    options, folder, columns, _ = TASKS[kind]
    name, _, how = name.partition(" ")
    rows = tiny.lines(folder, limit=20)
    rows = [{**row, "text": row["text"][:200]} if "text" in row else row for row in rows]
    data = home / f"{kind}.jsonl"
    if not data.exists():
        tiny.write_rows(data, rows)
    return {
        "task": {"name": kind, **options, **SPECIAL.get(how, {}).get("task", {})},
        "model": origin(name, how, home),
        "tokenizer": {"path": tokenizer_of(name, home)},
        "data": {"train": str(data), "columns": columns, "cache_dir": str(home / "cache")},
        "train": {
            "batch_size": 8,
            "max_steps": 4,
            "save_steps": 2,
            "learning_rate": 3e-3,
            "logging_steps": 1,
            "save_total_limit": 1,
            **train,
        },
        "output": {"dir": str(path / "run")},
    }


def pieces(kind, name, path, home):
    """(prepared, model, its shortcuts), dropout off."""
    made = recipe.from_dict(source(kind, name, path, home))
    prepared = prepare.prepare(made, ["train"], Reporter(silent=True))
    model = prepare.build_model(prepared).model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    sample = prepared.rows["train"].sample()
    return prepared, model, shortcuts.choose(model, sample, prepared.task, prepared.options)


def gradients(prepared, model, ways, accelerator, steps):
    """(gradients of the first step, number of its micro-batches), in eval mode, where functional dropout is off too."""
    batches = steps[0].batches
    found, _ = splits.gradients(model.eval(), batches, prepared.rows["train"], accelerator, shortcuts=ways)
    return found, len(batches)


def assert_close(found, wanted):
    scale = max(1.0, *(float(g.abs().max()) for g in wanted.values()))
    assert found.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(found[parameter], gradient, atol=2e-6 * scale, rtol=0)


def losses_of(prepared, model, ways):
    """Sums of the losses of each row, by term."""
    rows = loop.evaluate_rows(
        model, prepared.rows["train"], Accelerator(cpu=True), budget=10**6, shortcuts=ways, limit=8
    )
    return {name: sums for name, (sums, _) in rows.items()}


@pytest.mark.parametrize(("kind", "name"), MARKED)
def test_gradients_are_the_same_at_every_split_and_it_learns_and_reloads(kind, name, tmp_path, home, monkeypatch):
    prepared, model, ways = pieces(kind, name, tmp_path, home)
    rows = prepared.rows["train"]
    (whole, one), (split, many) = (
        gradients(
            prepared, copy.deepcopy(model), ways, Accelerator(cpu=True),
            Steps(rows, Plan(rows.data.lengths, 0, 6), 0, budget, overhead),
        )
        for budget, overhead in ((10**6, 10**9), (1, 0))
    )  # fmt: skip
    assert (one, many) == (1, 6)
    assert_close(split, whole)

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, fused=True)
    steps = Steps(rows, Plan(rows.data.lengths, 0, 8), 0, 10**6, 10**9)
    batches = steps[0].batches  # the same rows again and again: any head must come to know them
    model.train()
    for number in range(20):
        with waits.none(monkeypatch) if number == 1 else nullcontext():
            sums, counts, _ = loop.train_step(
                model, batches, Accelerator(cpu=True), optimizer, prepared.task, prepared.options,
                shortcuts=ways, max_norm=1.0, smoothing=0.1 if number == 1 else 0.0,
            )  # fmt: skip
    loss = sum(float(sums[t.name] / counts[t.name]) * t.weight for t in prepared.task.terms)
    assert loss < TASKS[kind][3]

    model.save_pretrained(tmp_path / "saved")
    again = replace(prepared, recipe=prepared.recipe.model_copy(update={"model": Model(path=str(tmp_path / "saved"))}))
    built = prepare.build_model(again)
    assert not built.new
    before, after = losses_of(prepared, model, ways), losses_of(prepared, built.model, ways)
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize(("kind", "name"), MARKED)
def test_a_killed_run_ends_with_the_same_bits(kind, name, tmp_path, home):
    straight, killed = (source(kind, name, tmp_path / part, home) for part in ("straight", "killed"))
    run.train(recipe.from_dict(straight), Reporter(silent=True))
    assert children.child(children.train_and_die, killed, 3) == -signal.SIGKILL
    assert (tmp_path / "killed" / "run" / "checkpoints" / "step-2").is_dir()
    run.train(recipe.from_dict(killed), Reporter(silent=True))
    found = sorted(
        path.relative_to(tmp_path / "straight") for path in (tmp_path / "straight").rglob("run/*.safetensors")
    )
    found += sorted(path.relative_to(tmp_path / "straight") for path in (tmp_path / "straight").glob("run/*/model*"))
    assert found
    for path in found:
        wanted, tensors = load_file(tmp_path / "straight" / path), load_file(tmp_path / "killed" / path)
        assert wanted.keys() == tensors.keys()
        assert all(torch.equal(tensors[key], tensor) for key, tensor in wanted.items())


ONE_OF_EACH_HEAD = [
    ("mlm", "bert"),
    ("clm", "gpt2"),
    ("plm", "xlnet"),
    ("span", "t5"),
    ("denoise", "bart"),
    ("rtd", "electra"),
    ("classify", "distilbert"),
    ("tag", "roberta"),
    ("qa", "albert"),
    ("choice", "bert"),
    ("translate", "bert warm"),
    ("summarize", "llama"),
]


@pytest.mark.parametrize(
    ("kind", "name"), [*ONE_OF_EACH_HEAD, *(("summarize", name) for name in zoo.SEQ2SEQ)], ids=zoo.ident
)
def test_a_rank_without_rows_computes_with_the_others_and_counts_nothing(kind, name, tmp_path, home):
    prepared, model, ways = pieces(kind, name, tmp_path, home)
    batch = prepared.rows["train"].silent(0)
    criterion = heads.Criterion(head=ways.head)
    found = heads.losses(model, batch, prepared.task, prepared.options, criterion)
    assert {name: loss.total.item() for name, loss in found.items()} == dict.fromkeys(found, 0.0)


def test_two_ranks_have_the_gradients_of_one(tmp_path, home):
    """For every head, of a step whose rows do not divide by two."""
    jobs = []
    for kind, name in ONE_OF_EACH_HEAD:
        prepared, model, ways = pieces(kind, name, tmp_path, home)
        rows = prepared.rows["train"]
        plan = Plan(rows.data.lengths, 0, 7)
        wanted, _ = gradients(prepared, copy.deepcopy(model), ways, Accelerator(cpu=True), Steps(rows, plan, 0, 10**6))
        jobs.append((prepared, model, ways, plan, wanted))
    assert children.ranks(2, every_head, jobs) == [0, 0]


def every_head(jobs):
    for prepared, model, ways, plan, wanted in jobs:
        rows = prepared.rows["train"]
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == 2
        distributed.PIECE = 1000
        steps = Steps(rows, plan, 0, 10**6, rank=accelerator.process_index, ranks=2)
        found, _ = gradients(prepared, model, ways, accelerator, steps)
        assert_close(found, wanted)


def fits(kind, name):
    """Whether `hftune check` takes a task and an architecture to go together; what it refuses comes with a hint."""
    made = recipe.from_dict(
        {"task": kind, "model": {"init": name}, "data": {"train": "rows.jsonl"}, "output": {"dir": "run"}}
    )
    config, plain = models.configuration(made.model), task.load(kind)
    options = prepare.complete_options(plain, made.task.options, config, None)
    try:
        preflight._check_together(made, plain.under(options), options, config)
    except UserError as fault:
        return not fault.hint
    return True


def test_check_knows_the_table():
    accepted = {(kind, name) for kind in task.names() for name in zoo.ARCHITECTURES if fits(kind, name)}
    assert accepted == {(kind, name) for kind, names in TABLE.items() for name in names} | ODD


@pytest.mark.parametrize(
    "name", ["bloom", "falcon", "gpt_neo", "gptj", "helium", "mamba", "nemotron", "opt", "qwen3_next"]
)
def test_check_takes_a_kind_of_which_no_tiny_model_can_be_made_or_called(name):
    """Other names for its sizes, sizes that hang together, layers of several sorts: none of that is the user's fault."""
    assert fits("clm", name)


@pytest.mark.parametrize("name", ["bloom", "gemma3_text", "mamba", "mixtral", "olmo2", "phi3", "smollm3"])
def test_a_decoder_without_a_row_of_its_own_translates_too(name):
    made = recipe.from_dict(
        {"task": "translate", "model": {"init": name}, "data": {"train": "rows.jsonl"}, "output": {"dir": "run"}}
    )
    options = prepare.complete_options(
        task.load("translate"), made.task.options, models.configuration(made.model), None
    )
    assert options.form == "decoder-only"
    assert fits("translate", name)


@pytest.mark.parametrize("name", task.names())
def test_options_that_a_run_writes_down_can_be_read_again(name):
    """At the smallest length too, where defaults that go with longer rows are written down beside it."""
    options = task.load(name).options
    least = next(bound.ge for bound in options.model_fields["max_length"].metadata if hasattr(bound, "ge"))
    made = options(max_length=least)
    assert options.model_validate(made.model_dump()) == made
