"""Every task on every architecture that makes sense: it learns, at any split, and survives being killed."""

import copy
import signal

import children
import pytest
import tiny
import torch
import zoo
from accelerate import Accelerator
from safetensors.torch import load_file

from hftune import heads, loop, prepare, recipe, tokenizer
from hftune.batching import Plan, generator
from hftune.loop import Steps
from hftune.report import Reporter

SHORT = {"max_length": 40}
SEQUENCE = {**SHORT, "max_target_length": 24, "max_new_tokens": 4}
# task: (its options, rows of a bundled set, columns)
TASKS = {
    "mlm": (SHORT, "docs-text", {}),
    "clm": (SHORT, "docs-text", {}),
    "plm": (SHORT, "docs-text", {}),
    "span": (SHORT, "docs-text", {}),
    "denoise": (SHORT, "docs-text", {}),
    "rtd": (SHORT, "docs-text", {}),
    "classify": (SHORT, "sentiment-tweets", {}),
    "tag": (SHORT, "address-tokens", {}),
    "qa": ({"max_length": 64, "stride": 8, "unanswerable": True}, "address-qa", {}),
    "choice": ({**SHORT, "context": True}, "address-choice", {}),
    "translate": (SEQUENCE, "translation-ui-en-de", {"source": "translation.en", "target": "translation.de"}),
    "summarize": (SEQUENCE, "code-summary", {}),
}
ENCODERS = zoo.ENCODERS
PAIRS = [
    *(("mlm", name) for name in ENCODERS),
    *(("clm", name) for name in zoo.DECODERS),
    ("plm", "xlnet"),
    *(("span", name) for name in ("t5", "mt5", "longt5")),
    *(("denoise", name) for name in ("bart", "mbart")),
    ("rtd", "electra"),
    *(("classify", name) for name in (*ENCODERS, "xlnet", "gpt2", "llama", "qwen3", "t5", "bart")),
    *(("tag", name) for name in ("bert", "roberta", "deberta-v2", "modernbert", "xlnet")),
    *(("qa", name) for name in ("bert", "roberta", "modernbert")),
    *(("choice", name) for name in ("bert", "albert")),
    *(("translate", name) for name in ("t5", "marian", "bart", "pegasus", "gpt2", "llama")),
    *(("summarize", name) for name in ("t5", "bart")),
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Folder of an architecture's own tokenizer, made once."""
    home = tmp_path_factory.mktemp("tokenizers")

    def folder(name):
        if not (home / name).exists():
            tokenizer.save(zoo.tok(name), home / name)
        return str(home / name)

    return folder


def source(task, name, path, tokenizers, **train):
    options, folder, columns = TASKS[task]
    rows = tiny.lines(folder, limit=20)
    rows = [{**row, "text": row["text"][:200]} if "text" in row else row for row in rows]
    return {
        "task": {"name": task, **options},
        "model": {
            "init": name,
            "config": {
                **zoo.SIZE,
                **({"max_position_embeddings": 128} if name not in {"xlnet", *zoo.SEQ2SEQ[:3], "modernbert"} else {}),
            },
        },
        "tokenizer": {"path": tokenizers(name)},
        "data": {
            "train": str(tiny.write_rows(path / "rows.jsonl", rows)),
            "columns": columns,
            "cache_dir": str(path / "cache"),
        },
        "train": {
            "batch_size": 8,
            "max_steps": 6,
            "save_steps": 2,
            "learning_rate": 3e-3,
            "logging_steps": 1,
            "save_total_limit": 1,
            **train,
        },
        "output": {"dir": str(path / "run")},
    }


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_gradients_are_the_same_at_every_split_and_it_learns(task, name, tmp_path, tokenizers):
    made = recipe.from_dict(source(task, name, tmp_path, tokenizers))
    prepared = prepare.prepare(made, ["train"], Reporter(silent=True))
    model = prepare.build_model(prepared).model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = prepared.rows["train"]
    head = heads.choose_head(model, rows.batch([0], [generator(0, 0)]), prepared.task, prepared.options)
    found = []
    for budget, overhead in ((10**6, 10**9), (1, 0)):
        copied, taken = copy.deepcopy(model), {}
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.0)
        optimizer.register_step_pre_hook(
            lambda *_, c=copied, t=taken: t.update(
                {n: p.grad.clone() for n, p in c.named_parameters() if p.grad is not None}
            )
        )
        step = Steps(rows, Plan(rows.data.lengths, 0, 6), 0, budget, overhead)[0]
        torch.manual_seed(0)
        copied.eval()  # what a model draws beside dropout (a generator's samples) is its task's own test
        loop.train_step(
            copied, step.batches, Accelerator(cpu=True), optimizer, prepared.task, prepared.options, head=head
        )
        found.append((taken, len(step.batches)))
    (whole, one), (split, many) = found
    assert one == 1
    assert many == 6
    assert whole.keys() == split.keys()
    if task != "rtd":
        scale = max(float(g.abs().max()) for g in whole.values())
        for parameter, gradient in whole.items():
            torch.testing.assert_close(split[parameter], gradient, atol=1e-6 * max(1.0, scale), rtol=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = Steps(rows, Plan(rows.data.lengths, 0, 20), 0, 10**6, 10**9)
    losses = []
    model.train()
    for _ in range(12):  # the same rows again and again: any head must come to know them
        sums, counts, _ = loop.train_step(
            model, steps[0].batches, Accelerator(cpu=True), optimizer, prepared.task, prepared.options, head=head
        )
        losses.append(sum(float(sums[t.name] / counts[t.name]) * t.weight for t in prepared.task.terms))
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize(("task", "name"), [pair for i, pair in enumerate(PAIRS) if i % 2 == 0])
def test_a_killed_run_ends_with_the_same_bits_and_reloads(task, name, tmp_path, tokenizers):
    weights = []
    for killed in (False, True):
        place = tmp_path / str(killed)
        place.mkdir()
        made = source(task, name, place, tokenizers)
        if killed:
            assert children.child(children.train_and_die, made, 5) == -signal.SIGKILL
        assert children.child(children.train, made) == 0
        weights.append(load_file(place / "run" / "model.safetensors"))
    straight, resumed = weights
    assert straight.keys() == resumed.keys()
    for key, tensor in straight.items():
        assert torch.equal(resumed[key], tensor), key
