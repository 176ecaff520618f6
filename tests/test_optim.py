"""What is trained, how fast, and when: depths, decay, unfreezing, the frozen body and its features."""

import itertools
import json
import os
import signal
import sys
from types import ModuleType, SimpleNamespace
from typing import get_args

import children
import pytest
import tiny
import torch
import zoo
from safetensors.torch import load_file
from transformers import BertConfig, TrainingArguments

from hftune import (
    checking,
    checkpoint,
    consistency,
    effect,
    features,
    heads,
    liger,
    machine,
    methods,
    models,
    optim,
    recipe,
    run,
    task,
    tokenizer,
)
from hftune.errors import UserError
from hftune.report import Reporter
from hftune.schema import WARMING, Model, Train


def built(name, head):
    return zoo.build(name, head).model


@pytest.mark.parametrize(("name", "head"), zoo.PAIRS, ids=zoo.ident)
def test_depth_counts_the_layers_above(name, head):
    model = built(name, head)
    above = optim.depths(model)
    assert above.keys() == dict(model.named_parameters()).keys()
    layered = {n: [int(part) for part in n.split(".") if part.isdigit()] for n in above}
    if name != "albert":  # whose layers are one
        for parameter, numbers in layered.items():
            assert above[parameter] == 2 - numbers[0] if numbers else above[parameter] in (0, 3), parameter
    given = model.get_input_embeddings().weight
    assert {above[n] for n, p in model.named_parameters() if p is given} == {max(above.values())}
    heads_of = [n for n in above if n.split(".")[0] in ("classifier", "score", "qa_outputs", "logits_proj", "pooler")]
    assert all(above[n] == 0 for n in heads_of)
    optim.unfreezing(model, 5)(4)
    first = {above[n] for n, p in model.named_parameters() if p.requires_grad}
    assert first == {min(above.values())}, "the first stage trains something"


def test_stacks_of_different_length_are_both_found():
    config = {**zoo.SIZE, "encoder_layers": 3, "decoder_layers": 1}
    above = optim.depths(zoo.build("bart", zoo.S2S, init="bart", config=config).model)
    assert {n.split(".")[3]: d for n, d in above.items() if ".encoder.layers." in n} == {"0": 3, "1": 2, "2": 1}
    assert {d for n, d in above.items() if ".decoder.layers." in n} == {1}


def test_rates_fall_from_layer_to_layer():
    model = built("t5", zoo.S2S)
    groups = optim.groups(model, Train(learning_rate=1.0, layerwise_lr_decay=0.5, weight_decay=0.1))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, depth in optim.depths(model).items():
        assert rate[id(model.get_parameter(name))] == 0.5**depth, name
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("name", "head"), [("bart", zoo.S2S), ("marian", zoo.S2S), ("bert", zoo.CLASSIFY), ("openai-gpt", zoo.CLASSIFY)]
)
def test_the_topmost_has_the_whole_rate_which_is_the_one_that_is_logged(name, head):
    """Where the head is the embedding nothing had the whole, and of a head without bias a lower layer's was logged."""
    if name == "openai-gpt":
        size = {"n_embd": 32, "n_layer": 2, "n_head": 2}
        source = Model(init=name, config=size)
        model = models.build(source, head, zoo.tok("gpt2"), settings={"num_labels": 3}, seed=0).model
    else:
        model = built(name, head)
    groups = optim.groups(model, Train(learning_rate=1.0, layerwise_lr_decay=0.5))
    rates = [group["lr"] for group in groups]
    assert rates[0] == max(rates) == 1.0
    assert {0.5, 0.25} < set(rates)


def test_what_does_not_decay():
    for name, head, exempt in [
        ("xlnet", zoo.CLASSIFY, "r_w_bias"),
        ("bert", zoo.MLM, "LayerNorm"),
        ("gpt2", zoo.CLM, "ln_1"),
    ]:
        model = built(name, head)
        groups = optim.groups(model, Train(weight_decay=0.1))
        free = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
        names = [n for n, p in model.named_parameters() if id(p) in free]
        assert any(exempt in n for n in names)
        assert all(p.ndim < 2 or "bias" in n for n, p in model.named_parameters() if id(p) in free)


def test_the_name_of_an_architecture_decides_nothing():
    decaying = [
        {n.split(".", 1)[1] for n, p in model.named_parameters() if id(p) in ids}
        for model in (built(name, zoo.CLASSIFY) for name in ("roberta", "roberta-prelayernorm"))
        for group in optim.groups(model, Train(weight_decay=0.1))
        if group["weight_decay"] and (ids := {id(p) for p in group["params"]})
    ]
    assert decaying[0] == decaying[1]


def test_unfreezing_follows_from_the_step():
    model = built("bert", zoo.CLASSIFY)
    before, above = optim.unfreezing(model, 3), optim.depths(model)
    for step in [0, 1, 2, 3, 5, 6, 8, 9, 30, 4, 0]:
        before(step)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == {
            n for n in above if above[n] <= step // 3
        }


def test_what_was_never_to_be_trained_is_not_unfrozen():
    model = built("marian", zoo.S2S)
    fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert fixed
    optim.unfreezing(model, 1)(100)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == fixed


# ------------------------------------------------------------------ the frozen body


@pytest.mark.parametrize(
    ("name", "head"), [p for p in zoo.PAIRS if p[1] in (zoo.CLASSIFY, zoo.TAG, zoo.QA)], ids=zoo.ident
)
def test_features_are_those_of_the_body(name, head, tmp_path):
    """Kept once, they give the outputs and gradients of the frozen model, at any padding, without computing its body."""
    model, batch = built(name, head), zoo.batch(name, head)
    core = model.base_model
    new = {n for n, p in model.named_parameters() if n.split(".")[0] in ("classifier", "score", "qa_outputs")}
    trained = features.freeze(model, new)
    assert trained
    model.train()
    dropout = [m for m in core.modules() if isinstance(m, torch.nn.Dropout)]
    assert not any(m.training for m in dropout), "a frozen body stays in eval mode"
    found = heads.losses(model.eval(), batch, zoo.task(head), None, heads.Criterion(head="full"))["loss"].total
    found.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert set(plain) <= set(trained)
    model.zero_grad()
    memory = features.Memory(model, tmp_path)
    assert memory.module is not None
    inputs = zoo.inputs(model, batch, head)
    told = memory.fill(model, [inputs])
    assert memory.rows == 4
    assert "features of 4 different rows" in told
    memory._compute = None  # calling it would fail
    again = heads.losses(model, batch, zoo.task(head), None, heads.Criterion(head="full"))["loss"].total
    again.backward()
    torch.testing.assert_close(again, found, atol=1e-6, rtol=1e-6)
    for key, gradient in plain.items():
        torch.testing.assert_close(model.get_parameter(key).grad, gradient, atol=1e-6, rtol=1e-4)
    side = zoo.tok(name).padding_side
    cut = slice(9) if side == "right" else slice(-9, None)
    width = max(zoo.LENGTHS)
    rows = [0, 2, 3]
    less = {k: v[rows][:, cut] if v.ndim == 2 and v.shape[1] == width else v[rows] for k, v in batch.items()}
    model.zero_grad()
    outputs = zoo.outputs(model, less, head)
    whole = zoo.outputs(model, batch, head)
    whole = whole[:, rows][..., cut] if head == zoo.QA else whole[rows] if head == zoo.CLASSIFY else whole[rows][:, cut]
    mask = less["attention_mask"].bool()
    if head == zoo.CLASSIFY:
        torch.testing.assert_close(outputs, whole, atol=1e-6, rtol=1e-5)
    elif head == zoo.TAG:
        torch.testing.assert_close(outputs[mask], whole[mask], atol=1e-6, rtol=1e-5)
    else:
        torch.testing.assert_close(outputs[:, mask], whole[:, mask], atol=1e-6, rtol=1e-5)


def test_rows_that_were_not_kept_are_computed(tmp_path):
    model = built("bert", zoo.TAG).eval()
    batch, other = zoo.batch("bert", zoo.TAG), zoo.batch("bert", zoo.TAG, seed=5)
    wanted = zoo.outputs(model, other, zoo.TAG)
    features.freeze(model, ())
    memory = features.Memory(model, tmp_path)
    memory.fill(model, [zoo.inputs(model, batch, zoo.TAG)])
    assert torch.equal(zoo.outputs(model, other, zoo.TAG), wanted)
    assert memory.rows == 4
    assert not list(tmp_path.iterdir()), "nothing is left on disk"


def test_features_that_would_fill_the_disk_are_not_kept(tmp_path, monkeypatch):
    """A token takes some kilobytes of a real body: those of a large corpus filled the disk, and the run ended."""
    model, batch = built("bert", zoo.TAG).eval(), zoo.batch("bert", zoo.TAG)
    real = batch["attention_mask"].bool()
    wanted = zoo.outputs(model, batch, zoo.TAG)[real]
    features.freeze(model, ())
    inputs, size = zoo.inputs(model, batch, zoo.TAG), 4 * zoo.SIZE["hidden_size"]  # bytes of a token
    tokens, computed = int(inputs["attention_mask"].sum()), []
    for free, rows in ((2 * size * tokens, 4), (2 * size * tokens - 2, 0)):
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        memory = features.Memory(model, tmp_path)
        told = memory.fill(lambda **given: computed.append(1) or model(**given), [inputs] * 3, tokens)
        assert (memory.rows, memory.bytes) == (rows, rows and size * tokens)
        assert told.startswith(
            "features of 4" if rows else "the features of the frozen body would take 0.0 MiB of the "
        )
        torch.testing.assert_close(zoo.outputs(model, batch, zoo.TAG)[real], wanted)
        memory.module.forward = memory._compute
    assert len(computed) == 3 + 1, "it is seen by the first batch"


def test_a_new_part_of_the_body_is_trained_with_the_head(tmp_path):
    """A pooler that no checkpoint gave would be a random projection before the probe."""
    zoo.build("bert", zoo.MLM).model.save_pretrained(tmp_path)
    made = zoo.build("bert", zoo.CLASSIFY, path=str(tmp_path))
    trained = features.freeze(made.model, made.new)
    assert {n.rsplit(".", 1)[0] for n in trained} == {"classifier", "bert.pooler.dense"}
    memory = features.Memory(made.model, tmp_path)
    assert memory.module is made.model.bert.encoder
    batch = zoo.batch("bert", zoo.CLASSIFY)
    memory.fill(made.model, [zoo.inputs(made.model, batch, zoo.CLASSIFY)])
    memory._compute = None
    loss = heads.losses(made.model, batch, zoo.task(zoo.CLASSIFY), None, heads.Criterion(head="full"))["loss"].total
    loss.backward()
    assert all(made.model.get_parameter(n).grad is not None for n in trained)


def test_all_that_a_row_is_given_tells_it_from_others(tmp_path):
    """A permutation LM's rows differ by more than their tokens: by what each position sees, and which are asked for."""
    model, batch = built("xlnet", zoo.CLM).eval(), zoo.batch("xlnet", zoo.CLM)
    features.freeze(model, ())
    memory, width = features.Memory(model, tmp_path), batch["input_ids"].shape[1]
    inputs = {**zoo.inputs(model, batch, zoo.CLM), "perm_mask": torch.zeros(4, width, width)}
    memory.fill(model, [inputs])
    assert memory.rows == 4
    other = {**inputs, "perm_mask": inputs["perm_mask"].clone()}
    other["perm_mask"][2, :, -2] = 1
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        found = model(**other).logits[real]
        memory.rows = 0
        assert torch.equal(found, model(**other).logits[real])
        assert not torch.allclose(found, model(**inputs).logits[real])


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_features_of_what_is_trained_below_are_not_kept(name, tmp_path):
    """Embeddings that were grown are trained: an evaluation must see them as they are, not as they were at the start."""
    block = {"init": name, "config": {**zoo.SIZE, **({"is_decoder": True} if name == "bert" else {})}}
    model, batch = zoo.build(name, zoo.CLM, **block).model.eval(), zoo.batch(name, zoo.CLM)
    embedding = model.get_input_embeddings().weight
    trained = features.freeze(model, {n for n, p in model.named_parameters() if p is embedding})
    assert any(model.get_parameter(n) is embedding for n in trained)
    memory, inputs = features.Memory(model, tmp_path), zoo.inputs(model, batch, zoo.CLM)
    assert "none of them can be kept" in memory.fill(model, [inputs])
    before = zoo.outputs(model, batch, zoo.CLM)
    with torch.no_grad():
        embedding.mul_(2)
    after = zoo.outputs(model, batch, zoo.CLM)
    memory.rows = 0
    assert torch.equal(after, zoo.outputs(model, batch, zoo.CLM))
    assert not torch.allclose(after, before)


def test_a_head_that_is_the_embedding_cannot_be_trained_alone():
    with pytest.raises(UserError, match="its head is its embedding"):
        features.freeze(built("gpt2", zoo.CLM), ())


@pytest.mark.parametrize("added", [(), ("<new>",)], ids=["as it is", "grown"])
def test_check_refuses_such_a_head_before_weights_are_loaded(added, tmp_path, monkeypatch):
    """Rows that are added to the embedding are new, and would be trained."""
    path = tmp_path / "gpt2"
    built("gpt2", zoo.CLM).save_pretrained(path)
    monkeypatch.setattr(models, "build", None)
    tokenizer.save(zoo.tok("gpt2"), path)
    wanted = {
        **tiny.mlm(tmp_path, freeze="body"),
        "task": {"name": "clm", "max_length": 32, "add_tokens": list(added)},
        "model": {"path": str(path)},
        "tokenizer": {},
    }
    if added:
        assert checking.check(recipe.from_dict(wanted))["train"]
        return
    with pytest.raises(UserError, match=r"its head is its embedding(.|\n)*peft: \{method: lora\}"):
        checking.check(recipe.from_dict(wanted))


def test_check_knows_that_positions_are_computed_and_not_saved(tmp_path):
    """Those of Marian are in no file, and none of them is trained."""
    path = tmp_path / "marian"
    built("marian", zoo.S2S).save_pretrained(path)
    tokenizer.save(zoo.tok("marian"), path)
    rows = [{"source": text, "target": text} for text in ("one", "two", "three")]
    wanted = {
        **tiny.mlm(tmp_path, freeze="body"),
        "task": {"name": "translate", "max_length": 16, "max_target_length": 16, "max_new_tokens": 4},
        "data": {"train": str(tiny.write_rows(tmp_path / "pairs.jsonl", rows))},
        "model": {"path": str(path)},
        "tokenizer": {},
    }
    with pytest.raises(UserError, match="marian has nothing to train"):
        checking.check(recipe.from_dict(wanted))


# ------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer_folder):
    """A pretrained model with its tokenizer."""
    path = tmp_path_factory.mktemp("base")
    tok = models.prepare_tokenizer(tokenizer.load(str(tokenizer_folder)), "bert")
    models.build(Model.model_validate(tiny.MODEL), zoo.MLM, tok, settings={}, seed=3).model.save_pretrained(path)
    tokenizer.save(tok, path)
    return path


def source(base, place, dropout=True, **train):
    place.mkdir(exist_ok=True)
    rates = {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    found = tiny.classify(place, str(base), **train)
    return {**found, "model": {"path": str(base), "config": rates}, "tokenizer": {}}


def weights(place):
    return load_file(place / "run" / "model.safetensors")


def test_a_probe_moves_its_head_alone_and_computes_the_body_once(base, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Reporter, "say", lambda self, line: told.append(line))
    made = source(base, tmp_path / "kept", freeze="body", max_steps=12)
    children.train(made)
    assert any("60 different rows computed once" in line for line in told), told
    monkeypatch.setattr(run.Run, "_compute_features", lambda self: None)
    children.train(source(base, tmp_path / "each", freeze="body", max_steps=12))
    start, kept, each = load_file(base / "model.safetensors"), weights(tmp_path / "kept"), weights(tmp_path / "each")
    body = [n for n in kept if n in start and n.startswith("bert.")]
    assert len(body) > 30
    assert all(torch.equal(kept[n], start[n]) for n in body)
    for name in kept:
        torch.testing.assert_close(kept[name], each[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["qa", "choice"])
def test_a_probe_computes_the_body_once_whatever_a_batch_holds_besides(kind, base, tmp_path, monkeypatch):
    """Where an answer may stand, and which choices there are, is not the model's to see."""
    told = []
    monkeypatch.setattr(Reporter, "say", lambda self, line: told.append(line))
    options = {
        "qa": {"max_length": 64, "stride": 8, "unanswerable": True},
        "choice": {"max_length": 40, "context": True},
    }
    for way in ("kept", "each"):
        made = source(base, tmp_path / way, freeze="body", max_steps=12)
        rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.lines(f"address-{kind}", limit=20))
        data = {"train": str(rows), "cache_dir": str(tmp_path / "cache")}
        children.train({**made, "task": {"name": kind, **options[kind]}, "data": data})
        monkeypatch.setattr(run.Run, "_compute_features", lambda self: None)
    assert len([line for line in told if "different rows computed once" in line]) == 1, told
    kept, each = weights(tmp_path / "kept"), weights(tmp_path / "each")
    for name in [name for name in kept if kept[name].ndim > 1]:  # a bias that all answers share cancels out
        torch.testing.assert_close(kept[name], each[name], atol=1e-5, rtol=0)


def test_a_probe_of_a_decoder_writes_its_answers(tmp_path):
    """Token by token, while its features are kept by whole rows."""
    folder = tmp_path / "base"
    built("gpt_neox", zoo.CLM).save_pretrained(folder)
    tokenizer.save(zoo.tok("gpt_neox"), folder)
    texts = [row["text"] for row in tiny.lines("docs-text", limit=12)]
    rows = [{"prompt": text[: 20 + i], "completion": text[100:120]} for i, text in enumerate(texts)]
    made = source(folder, tmp_path / "probe", freeze="body", max_steps=8)
    made |= {"task": {"name": "clm", "kind": "prompt", "max_length": 64, "max_new_tokens": 4}}
    made["model"]["config"] = {}
    files = {name: str(tiny.write_rows(tmp_path / f"{name}.jsonl", rows)) for name in ("train", "validation")}
    made["data"] = {**files, "cache_dir": str(tmp_path / "cache")}
    children.train(made)
    told = (tmp_path / "probe" / "run" / "predictions" / "validation.jsonl").read_text()
    assert len(told.splitlines()) == len(rows)


def test_masked_rows_are_not_kept(base, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Reporter, "say", lambda self, line: told.append(line))
    made = tiny.mlm(tmp_path, freeze="body", max_steps=12)
    children.train({**made, "model": {"path": str(base)}, "tokenizer": {}})
    assert any("frozen body" in line for line in told)
    assert not any("computed once" in line for line in told)


@pytest.mark.parametrize("train", [{"freeze": "body"}, {"gradual_unfreezing": 3}], ids=["probe", "unfreezing"])
def test_a_killed_run_goes_on_to_the_same_bits(base, tmp_path, train):
    straight = source(base, tmp_path / "one", max_steps=10, save_steps=2, **train)
    again = source(base, tmp_path / "two", max_steps=10, save_steps=2, **train)
    assert children.child(children.train, straight) == 0
    assert children.child(children.train_and_die, again, 5) == -signal.SIGKILL
    assert children.child(children.train, again) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_layers_move_only_once_they_are_unfrozen(base, tmp_path):
    """Neither weight decay nor momentum reaches a layer before its step."""
    start = load_file(base / "model.safetensors")
    for steps, still in (
        (2, ["layer.0", "layer.1", "embeddings"]),
        (4, ["layer.0", "embeddings"]),
        (6, ["embeddings"]),
        (8, []),
    ):
        place = tmp_path / str(steps)
        children.train(source(base, place, max_steps=steps, gradual_unfreezing=2, weight_decay=0.5, learning_rate=1e-2))
        ended = weights(place)
        for name in (n for n in ended if n in start and n.startswith("bert.")):
            frozen = any(part in name for part in still)
            assert torch.equal(ended[name], start[name]) == frozen or "key.bias" in name, name


def test_the_best_checkpoint_holds_what_was_frozen_then(base, tmp_path):
    """A checkpoint from before a layer was unfrozen takes that layer back too."""
    made = recipe.from_dict(source(base, tmp_path, max_steps=4, gradual_unfreezing=2))
    model = models.build(made.model, zoo.CLASSIFY, zoo.tok("bert"), settings={"num_labels": 3}, seed=0).model
    optimizer = optim.optimizer(optim.groups(model, made.train), made.train)
    before = optim.unfreezing(model, 2)
    before(0)
    saved = checkpoint.save(tmp_path / "checkpoints", 1, model, optimizer, {}, {})
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    before(100)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    saved.load(model, optimizer)
    assert all(torch.equal(p, kept[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("train", [{"gradual_unfreezing": 1}, {"freeze": "body"}, {"layerwise_lr_decay": 0.5}], ids=str)
def test_two_ranks_train_as_one(base, tmp_path, train):
    plain = {"optim": "sgd", "adam_beta1": 0.0, "learning_rate": 0.1, "weight_decay": 0.0, "max_steps": 3, **train}
    found = []
    for number in (1, 2):
        made = source(base, tmp_path / str(number), dropout=False, **plain)
        ends = [children.child(children.train, made)] if number == 1 else children.ranks(2, children.train, made)
        assert ends == [0] * number
        found.append(weights(tmp_path / str(number)))
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "option", [{"precision": "bf16"}, {"gradient_checkpointing": True}, {"optim": "adafactor"}], ids=str
)
def test_an_option_trains_to_finite_figures(base, tmp_path, option):

    def work():
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # the tests before have made one
        children.train(source(base, tmp_path, max_steps=4, **option))

    assert children.child(work) == 0
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 < figures["loss"]["value"] < 5


def test_checkpointed_activations_give_the_same_weights(base, tmp_path):
    for name, flag in (("kept", False), ("again", True)):
        children.train(source(base, tmp_path / name, max_steps=3, gradient_checkpointing=flag))
    one, two = weights(tmp_path / "kept"), weights(tmp_path / "again")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=0)


def test_activations_that_cannot_be_recomputed_are_told_before_anything_is_done(tmp_path):
    """Of every architecture of the table what `check` says is what its model does."""
    for name, head in zoo.PAIRS:
        model = built(name, head)
        if methods.recomputes(model.config, head):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            with pytest.raises(ValueError, match="does not support"):
                model.gradient_checkpointing_enable()
    made = {**tiny.mlm(tmp_path, gradient_checkpointing=True), "task": {"name": "plm"}}
    made["model"] = {"init": "xlnet", "config": zoo.SIZE}
    for work in (checking.check, lambda wanted: run.train(wanted, Reporter(silent=True))):
        with pytest.raises(UserError, match=r"train\.gradient_checkpointing: .*activations of xlnet"):
            work(recipe.from_dict(made))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def unwritten():
    """Memory to which nothing was written yet holds what is no number."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("bad", [0, 2])
def test_gradients_that_are_not_finite_move_nothing(name, bad, unwritten):
    """Neither weights nor moments nor counts: what follows is as if that step had not been."""
    ended = []
    for broken in (False, True):
        weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
        optimizer = optim.optimizer([weight], Train(batch_size=1, optim=name, learning_rate=0.1))
        for step in range(4):
            if step == bad and not broken:
                continue
            weight.grad = torch.full_like(weight, torch.nan) if step == bad else torch.ones_like(weight) * (step + 1)
            optim.move(optimizer, torch.linalg.vector_norm(weight.grad))
        ended.append((weight.tolist(), [value.tolist() for value in optimizer.state[weight].values()]))
    assert ended[0] == ended[1]


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_a_layer_that_gets_its_first_gradient_later_moves_as_one_alone(name):
    """As with gradual unfreezing."""
    early, late, alone = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(3))
    both, one = (optim.optimizer(those, Train(optim=name, learning_rate=0.1)) for those in ([early, late], [alone]))
    for step in range(4):
        early.grad = torch.ones(2, 3)
        if step > 1:
            late.grad, alone.grad = (torch.full((2, 3), float(step)) for _ in range(2))
            optim.move(one, torch.tensor(1.0))
        optim.move(both, torch.tensor(1.0))
    assert torch.equal(late, alone)
    assert not torch.equal(late, torch.ones(2, 3))


@pytest.mark.parametrize("key", ["weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"])
@pytest.mark.parametrize("name", get_args(Train.model_fields["optim"].annotation))
def test_an_optimizer_takes_the_settings_that_move_its_weights(name, key):
    found = []
    for block in (Train(optim=name), Train(optim=name).model_copy(update={key: 0.5})):
        model = torch.nn.Linear(3, 2)
        torch.nn.init.ones_(model.weight)
        optimizer = optim.optimizer(optim.groups(model, block), block)
        for step in range(3):
            model.weight.grad = torch.arange(1.0, 7).view(2, 3) * (step + 1)
            optimizer.step()
        found.append(model.weight.detach())
    moved = not torch.equal(*found)
    taken = not effect.idle(Train(optim=name).model_copy(update={key: 0.5}))
    assert moved == taken


def test_what_weight_decay_is_decoupled_from():
    """It leaves the moments alone, but with those optimizers that the field's text names."""
    names, coupled = get_args(Train.model_fields["optim"].annotation), set()
    for name in names:
        moments = []
        for decay in (0.0, 0.5):
            weight = torch.nn.Parameter(torch.arange(1.0, 7).view(2, 3))
            group = {"params": [weight], "weight_decay": decay}
            optimizer = optim.optimizer([group], Train(optim=name, learning_rate=0.1))
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            moments.append([value.tolist() for value in optimizer.state[weight].values()])
        if moments[0] != moments[1]:
            coupled.add(name)
    assert {name for name in names if name in str(Train.model_fields["weight_decay"].description)} == coupled == {"sgd"}


NEEDED = {"warmup_stable_decay": {"num_decay_steps": 3}, "cosine_with_min_lr": {"min_lr": 1e-6}}


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("name", get_args(Train.model_fields["lr_scheduler_type"].annotation))
def test_every_schedule_rises_and_does_not_rise_again(name, warmup):
    block = Train(lr_scheduler_type=name, lr_scheduler_kwargs=NEEDED.get(name, {}))
    block = block.model_copy(update={"warmup_steps": warmup})  # where it has no effect too
    optim.check(block)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made, rates = optim.schedule(optimizer, block, 10), []
    for _ in range(10):
        rates.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    first = warmup if name in WARMING else 0
    assert rates[: first + 1] == pytest.approx([i / max(1, first) for i in range(first)] + [1.0])
    assert all(one >= two for one, two in itertools.pairwise(rates[first:]))


def test_a_share_of_the_steps_warms_up_for_as_many_as_in_transformers(tmp_path):
    for ratio, steps in itertools.product((0.0, 0.03, 0.05, 0.07, 0.1, 1.0), range(4, 120)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        made = optim.schedule(optimizer, Train(warmup_ratio=ratio), steps)
        theirs = TrainingArguments(str(tmp_path), warmup_steps=ratio).get_warmup_steps(steps) if ratio < 1 else steps
        rates = [made.lr_lambdas[0](step) for step in range(steps)]
        assert rates.index(max(rates)) == min(theirs, steps - 1), (ratio, steps)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"lr_scheduler_kwargs": {"min_lr": 1}}, r"\.min_lr: linear takes no min_lr"),
        ({"lr_scheduler_kwargs": {"last_epoch": 1}}, "linear takes no last_epoch"),
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            r"warmup_stable_decay needs num_decay_steps\n  hint: set train\.",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cosine_with_min_lr does not work .*min_lr or min_lr_rate"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}},
            r"lr_end \(1\.0\) must be smaller",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 2e-3}},
            r"would rise to 2 times train\.learning_rate",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 1.5}},
            r"would rise to 1\.5 times",
        ),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "two"}}, "does not work"),
        ({"lr_scheduler_type": "polynomial", "warmup_steps": 6}, "needs steps after its warmup"),
    ],
    ids=str,
)
def test_a_schedule_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, train, words):
    monkeypatch.setattr(models, "build", None)
    made = tiny.mlm(tmp_path, **train)
    with pytest.raises(UserError, match=rf"train\.lr_scheduler_kwargs(.|\n)*{words}"):
        checking.check(recipe.from_dict(made))
    with pytest.raises(UserError, match=words):
        children.train(made)
    assert not (tmp_path / "run").exists()


def test_fp16_without_a_gpu_is_refused(base, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"train\.precision: fp16 needs a GPU"):
        children.train(source(base, tmp_path, precision="fp16"))


@pytest.mark.parametrize(("own", "chosen"), [(True, "bf16"), (False, "no")])
def test_half_precision_is_chosen_where_a_gpu_has_it_and_not_where_it_is_imitated(monkeypatch, own, chosen):
    """By what torch says of the two kinds of GPU, of which none is needed; without being asked it counts both."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: own or including_emulation)
    assert machine.precision(Train()) == chosen
    assert machine.precision(Train(precision="bf16")) == "bf16", "who asks for it gets it"


def test_an_attention_that_has_no_float32_is_refused_in_float32_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build", None)
    made = {**tiny.mlm(tmp_path, precision="fp32"), "model": {**tiny.MODEL, "attention": "flash_attention_2"}}
    words = r"model\.attention: flash_attention_2 computes in half precision(.|\n)*precision: bf16"
    with pytest.raises(UserError, match=words):
        checking.check(recipe.from_dict(made))
    with pytest.raises(UserError, match=words):
        children.train(made)
    made["train"]["precision"] = "bf16"
    assert not list(consistency.check(recipe.from_dict(made), task.load("mlm")))


def test_a_gpu_that_is_to_be_left_alone_is_not_computed_for(monkeypatch):
    """As `accelerate launch --cpu` says it, and accelerate's own configuration."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert machine.gpu()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert not machine.gpu()
    assert machine.precision(Train()) == "no"
    assert machine.micro_batch_tokens(None) == 2048
    with pytest.raises(UserError, match=r"train\.precision: fp16 needs a GPU"):
        machine.precision(Train(precision="fp16"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert machine.accelerator(Train()).device.type == "cpu"


def compile_by_the_environment():
    from accelerate.state import AcceleratorState

    os.environ["ACCELERATE_DYNAMO_BACKEND"] = "EAGER"  # as `accelerate launch` has it from a configuration
    AcceleratorState._reset_state(reset_partial_state=True)
    layer = torch.nn.Linear(2, 2)
    assert machine.accelerator(Train()).prepare_model(layer, evaluation_mode=True) is layer


def test_only_the_recipe_says_whether_a_model_is_compiled():
    assert children.child(compile_by_the_environment) == 0


def test_kernels_of_liger_are_asked_for_what_they_need(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    wanted, config = Train(use_liger_kernel=True), BertConfig()
    with pytest.raises(UserError, match=r"train\.use_liger_kernel: Liger's kernels need a GPU"):
        liger.check(wanted, config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_liger_kernel_available", lambda: False)
    with pytest.raises(UserError, match=r"liger-kernel is not installed\n.*pip install liger-kernel"):
        liger.check(wanted, config)
    # its own table of architectures, which only the package has
    table = ModuleType("liger_kernel.transformers.monkey_patch")
    table.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3": None, "llama": None}
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, table.__name__, table)
    monkeypatch.setattr("transformers.utils.is_liger_kernel_available", lambda: True)
    with pytest.raises(UserError, match=r"no kernels for bert\n.*some for llama, qwen3"):
        liger.check(wanted, config)


def test_kernels_of_liger_leave_the_head_to_us(base, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(liger, "check", lambda _, config: seen.append(config.model_type))
    monkeypatch.setattr(
        "transformers.integrations.liger.apply_liger_kernel", lambda model, settings: seen.append(settings)
    )
    children.train(source(base, tmp_path, max_steps=1, use_liger_kernel=True))
    assert seen == ["bert", {"cross_entropy": False, "fused_linear_cross_entropy": False}]


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(base, tmp_path):
    for name, flag in (("plain", False), ("compiled", True)):
        made = source(base, tmp_path / name, dropout=False, max_steps=3, compile=flag)
        assert children.child(children.train, made) == 0
    one, two = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=0)
