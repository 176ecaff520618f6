"""Replaced-token detection: what is sampled, both losses, one set of embeddings, and a run that transformers loads."""

import json
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import children
import fine
import numpy as np
import pytest
import splits
import test_loop
import test_mlm
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hftune import batching, checkpoint, heads, loop, prepare, recipe, shortcuts
from hftune.batching import generator
from hftune.errors import UserError
from hftune.report import Reporter
from hftune.task import IGNORE
from hftune.tasks import rtd

seeds = st.integers(0, 2**32)
ELECTRA = {**tiny.SIZES["bert"], "embedding_size": 24, "num_attention_heads": 4, "max_position_embeddings": 128}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def source(folder, tokenizer, model=None, task=None, **train):
    """A recipe of a few seconds, dropout off."""
    return {
        **tiny.mlm(folder, **train),
        "task": {"name": "rtd", "max_length": 48, **(task or {})},
        "model": model or {"init": "electra", "config": {**ELECTRA, **STILL}},
        "tokenizer": {"path": tokenizer},
    }


@pytest.fixture(scope="module")
def job(tmp_path_factory, tokenizer_folder):
    return test_loop.pieces(tmp_path_factory.mktemp("rtd"), source, str(tokenizer_folder))


def rngs(number):
    return [generator(0, 0, i) for i in range(number)]


# ---------------------------------------------------------------- sampling


@given(seeds, st.integers(1, 40), st.integers(2, 300))
def test_a_sample_is_where_the_distribution_function_passes_the_draw(seed, rows, entries):
    drawn = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, entries, generator=drawn) * 3
    uniform = torch.rand(rows, generator=drawn)
    found = rtd.sample(logits, uniform)
    ends = logits.double().softmax(-1).cumsum(-1)
    at = found[:, None]
    assert ((found >= 0) & (found < entries)).all()
    assert (ends.gather(1, at).squeeze(1) >= uniform.double() - 1e-5).all()
    assert (
        ends.gather(1, at).squeeze(1) - logits.double().softmax(-1).gather(1, at).squeeze(1) <= uniform.double() + 1e-5
    ).all()


def test_samples_have_the_generators_distribution():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -20.0])
    uniform = torch.from_numpy(np.random.default_rng(0).random(50_000, np.float32))
    found = rtd.sample(logits.expand(50_000, 5), uniform).bincount(minlength=5) / 50_000
    torch.testing.assert_close(found, logits.softmax(0), atol=5 * 0.5 / 50_000**0.5, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_a_sample_at_either_end_is_an_entry_that_can_occur(uniform):
    logits = torch.tensor([[-1e9, 0.0, 0.0, -1e9]])
    assert int(rtd.sample(logits, torch.tensor([uniform]))) in (1, 2)


# ---------------------------------------------------------------- the batch and the forward pass


def test_a_batch_holds_the_text_and_the_draws():
    tok = fine.tok("bert")
    made = fine.encoded(rtd.TASK, "bert", rtd.RtdOptions(max_length=48), tiny.lines("docs-text", limit=3))
    batch = fine.batch(made, range(5))
    there = batch["attention_mask"].bool()
    asked = batch["labels"] != IGNORE
    assert (batch["original"][~there] == IGNORE).all()
    assert (batch["original"][asked] == batch["labels"][asked]).all()
    assert (batch["original"][there & ~asked] == batch["input_ids"][there & ~asked]).all()
    assert set(batch["input_ids"][asked & (batch["input_ids"] != batch["original"])].tolist()) == {tok.mask_token_id}
    assert batch["uniform"].dtype == torch.float32
    assert ((batch["uniform"] >= 0) & (batch["uniform"] < 1)).all()
    for row in range(5):
        alone = fine.batch(made, [row])
        kept, own = there[row], alone["attention_mask"][0].bool()
        assert all(torch.equal(batch[name][row][kept], alone[name][0][own]) for name in batch)


@given(test_mlm.seeds, test_mlm.rates, test_mlm.ways)
def test_nothing_depends_on_the_batch(seed, rate, way):
    tok, rows = fine.tok("bert"), test_mlm.random_rows(seed, 12)
    options = rtd.RtdOptions(mask_rate=rate, **way)
    together = rtd.collate(rows, tok, options, rngs(12))
    for number, row in enumerate(rows):
        alone = rtd.collate([row], tok, options, [generator(0, 0, number)])
        kept, own = (made["attention_mask"][at].astype(bool) for made, at in ((together, number), (alone, 0)))
        assert together.keys() == alone.keys()
        for name, values in together.items():
            assert values[number][kept].tolist() == alone[name][0][own].tolist(), name
        assert (together["original"][number][kept] == row["input_ids"]).all()


def test_what_the_discriminator_sees(job):
    prepared, model = job
    batch = prepared.rows["train"].batch(range(12), rngs(12))
    seen = []
    hook = model.main.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["input_ids"]), with_kwargs=True
    )
    outputs = model(**batch)
    hook.remove()
    asked, there = batch["labels"] != IGNORE, batch["attention_mask"].bool()
    assert torch.equal(seen[0][there & ~asked], batch["original"][there & ~asked]), "elsewhere the text, unmasked"
    assert torch.equal(seen[0][asked], rtd.sample(outputs.logits[asked], batch["uniform"][asked]))
    replaced = (seen[0] != batch["original"]) & there
    assert torch.equal(outputs.replaced[there] == 1, replaced[there])
    assert (outputs.replaced[~there] == IGNORE).all()
    assert 0 < int(replaced.sum()) <= int(asked.sum())


def test_a_token_that_the_generator_hits_is_not_replaced(job):
    """Clark et al. 2020, section 3.1."""
    prepared, model = job
    batch = prepared.rows["train"].batch(range(4), rngs(4))
    sampled = rtd.sample
    try:
        rtd.sample = lambda logits, uniform: batch["labels"][batch["labels"] != IGNORE]
        outputs = model(**batch)
    finally:
        rtd.sample = sampled
    assert not (outputs.replaced == 1).any()


def test_no_gradient_goes_through_the_choice(job):
    prepared, model = job
    batch = prepared.rows["train"].batch(range(4), rngs(4))
    model.zero_grad()
    outputs = model(**batch)
    keep = outputs.replaced != IGNORE
    torch.nn.functional.binary_cross_entropy_with_logits(
        outputs.replaced_logits[keep], outputs.replaced[keep]
    ).backward()
    shared = {id(p) for p in model.main.parameters()}
    own = [p for p in model.generator.parameters() if id(p) not in shared]
    assert own
    assert all(p.grad is None for p in own)
    model.zero_grad()


def test_the_losses_are_those_of_the_paper(job):
    """Clark et al. 2020, section 3.1, with transformers' own losses of both models."""
    prepared, model = job
    batch = prepared.rows["train"].batch(range(12), rngs(12))
    factors = {t.name: t.weight / (batch[t.labels] != IGNORE).sum() for t in prepared.task.terms}
    with torch.no_grad():
        found = heads.losses(model, batch, prepared.task, prepared.options, heads.Criterion(factors, head="kept"))
        inputs = {name: batch[name] for name in ("attention_mask", "token_type_ids")}
        outputs = model(**batch)
        text = torch.where(batch["original"] == IGNORE, batch["input_ids"], batch["original"])
        text[batch["labels"] != IGNORE] = rtd.sample(
            outputs.logits[batch["labels"] != IGNORE], batch["uniform"][batch["labels"] != IGNORE]
        )
        masked = model.generator(input_ids=batch["input_ids"], labels=batch["labels"], **inputs).loss
        truth = ((text != batch["original"]) & batch["attention_mask"].bool()).long()
        detected = model.main(input_ids=text, labels=truth, **inputs).loss
    assert float(found["generator"].total) == pytest.approx(float(masked), abs=1e-5)
    assert float(found["discriminator"].total) == pytest.approx(50 * float(detected), abs=1e-4)


def test_the_discriminator_weighs_as_the_recipe_says():
    terms = rtd.TASK.under(rtd.RtdOptions(discriminator_weight=7.0)).terms
    assert {term.name: term.weight for term in terms} == {"generator": 1.0, "discriminator": 7.0}


def test_gradients_are_the_same_at_every_split(job):
    prepared, model = job
    found = splits.assert_same(model, prepared.rows["train"], atol=1e-5, rtol=1e-4)  # fifty times as large as elsewhere
    assert list(found) == ["generator", "discriminator"]


def test_evaluation_is_fixed_at_any_batch_and_by_nothing_global(job):
    prepared, model = job
    rows, found = prepared.rows["validation"], []
    longest = int(rows.data.lengths.max())
    for number in (1, 5, 32):
        torch.manual_seed(number)
        by_row = loop.evaluate_rows(
            model, rows, test_loop.Accelerator(cpu=True), budget=number * longest, shortcuts=shortcuts.Shortcuts("kept")
        )
        found.append(loop.mean_loss(by_row, prepared.task))
    assert found[1:] == [pytest.approx(found[0], abs=1e-6)] * 2


def test_each_token_is_told_by_its_own_probability():
    """The special ones around a text, and padding, are left out."""
    main = Mock(side_effect=lambda input_ids, **more: SimpleNamespace(logits=(3.0 - 6.0 * (input_ids % 2))[..., None]))
    tok, options = fine.tok("bert"), rtd.RtdOptions(max_length=48).predicting()
    values = [{"text": text} for text in ("one file", "a list of the other files, and more", "no")]
    data = fine.encoded(rtd.TASK.under(options), "bert", options, values)
    rows = [data.data[i] for i in range(3)]
    found = rtd.predict(SimpleNamespace(main=main), fine.batch(data, range(3)), rows, tok, options)
    for value, answer in zip(values, found, strict=True):
        ids = tok(value["text"], add_special_tokens=False)["input_ids"]
        assert answer["tokens"] == tok.convert_ids_to_tokens(ids)
        assert answer["prediction"] == ["original" if id % 2 else "replaced" for id in ids]
        assert answer["scores"] == pytest.approx([1 / (1 + np.exp(3 if id % 2 else -3)) for id in ids])


def test_the_generators_head_is_computed_at_its_targets_alone(job):
    prepared, model = job
    batch = prepared.rows["train"].batch([0], [generator(0, 0)])
    assert shortcuts.choose(model, batch, prepared.task, prepared.options).head == "kept"
    batch, seen = prepared.rows["train"].batch(range(12), rngs(12)), []
    hook = model.generator.generator_lm_head.register_forward_hook(lambda _, args, out: seen.append(out.shape[0]))
    heads.losses(model, batch, prepared.task, prepared.options, heads.Criterion(head="kept"))
    hook.remove()
    asked = int((batch["labels"] != IGNORE).sum())
    assert asked <= seen[0] < asked + heads.SHAPES < batch["labels"].numel()


def test_a_silent_batch_counts_nothing(job):
    prepared, model = job
    batch = prepared.rows["train"].silent(0)
    factors = {term.name: torch.tensor(1.0) for term in prepared.task.terms}
    found = heads.losses(model, batch, prepared.task, prepared.options, heads.Criterion(factors, head="kept"))
    total = sum(part.total for part in found.values())
    total.backward()
    assert total.item() == 0
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())
    model.zero_grad()


# ---------------------------------------------------------------- the two networks


def test_the_generator_is_a_quarter_as_wide_and_shares_the_embeddings(job):
    _, model = job
    big, small = model.main, model.generator
    assert (small.config.hidden_size, small.config.num_attention_heads, small.config.intermediate_size) == (8, 1, 16)
    assert small.config.num_hidden_layers == big.config.num_hidden_layers
    assert small.electra.embeddings is big.electra.embeddings
    assert small.generator_lm_head.weight is big.electra.embeddings.word_embeddings.weight
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("init", "sizes", "task"),
    [
        ("bert", {}, {"generator_size": 1, "generator_layers": 0.5}),
        (
            "deberta-v2",
            {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
            {"generator_size": 1, "generator_layers": 0.5},
        ),
        ("roberta", {"max_position_embeddings": 130}, {"generator_size": 1, "generator_layers": 0.5}),
        ("electra", {}, {"discriminator_head": "token", "generator_size": 0.5}),
    ],
)
def test_other_encoders(tmp_path, tokenizer_folder, init, sizes, task):
    """DeBERTa-v3's way: a generator of the same width and half the layers (He et al. 2023, section 3)."""
    model = {"init": init, "config": {**tiny.MODEL["config"], **STILL, **sizes}}
    prepared, networks = test_loop.pieces(tmp_path, source, str(tokenizer_folder), model, task)
    assert networks.main.config.num_labels == 1
    splits.assert_same(networks, prepared.rows["train"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("init", "task", "message"),
    [
        ("bert", {}, "bert: generator and discriminator have embeddings of different shapes"),
        ("deberta-v2", {}, "deberta-v2: generator and discriminator have embeddings"),
        ("bert", {"discriminator_head": "pretraining"}, "predicts tokens, not which were replaced"),
        ("gpt2", {"generator_size": 1}, "gpt2 has no MaskedLM head"),
    ],
)
def test_what_cannot_work_is_refused_with_a_way_out(tmp_path, tokenizer_folder, init, task, message):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2} if init == "gpt2" else tiny.MODEL["config"]
    made = source(tmp_path, str(tokenizer_folder), {"init": init, "config": sizes}, task)
    prepared = prepare.prepare(recipe.from_dict(made), ["train"], Reporter(silent=True))
    with pytest.raises(UserError, match=message) as fault:
        prepare.build_model(prepared)
    assert fault.value.hint


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer_folder):
    """An uninterrupted run with dropout."""
    path = tmp_path_factory.mktemp("run")
    made = source(
        path, str(tokenizer_folder), {"init": "electra", "config": ELECTRA}, max_steps=8, save_steps=2, eval_steps=4
    )
    assert children.child(children.train, made) == 0
    return path / "run", made


def test_the_discriminator_is_the_run_and_the_generator_lies_beside_it(run):
    from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

    folder, _ = run
    big, info = AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    small, more = AutoModelForMaskedLM.from_pretrained(folder / "generator", output_loading_info=True)
    assert type(big).__name__ == "ElectraForPreTraining"
    assert not any(found[kind] for found in (info, more) for kind in ("missing_keys", "unexpected_keys"))
    assert torch.equal(big.electra.embeddings.word_embeddings.weight, small.electra.embeddings.word_embeddings.weight)
    assert torch.equal(
        AutoModel.from_pretrained(folder).embeddings.word_embeddings.weight, small.get_input_embeddings().weight
    )
    ids = AutoTokenizer.from_pretrained(folder)("One text.")["input_ids"]
    assert AutoTokenizer.from_pretrained(folder / "generator")("One text.")["input_ids"] == ids
    figures = json.loads((folder / "metrics.json").read_text())
    total = figures["generator_loss"]["value"] + 50 * figures["discriminator_loss"]["value"]
    assert figures["loss"]["value"] == pytest.approx(total)
    assert figures["perplexity"]["value"] == pytest.approx(np.exp(figures["generator_loss"]["value"]))


def test_a_given_generator_is_gone_on_with(run, tmp_path, tokenizer_folder):
    """A new discriminator takes its embeddings; a run has a generator of its own."""
    folder, _ = run
    kept = load_file(folder / "generator" / "model.safetensors")
    for model in ({"init": "electra", "config": ELECTRA}, {"path": str(folder)}):
        given = str(folder / "generator") if "init" in model else "no/such/folder"
        made = source(tmp_path, str(tokenizer_folder), model, {"generator": given})
        prepared = prepare.prepare(recipe.from_dict(made), ["train"], Reporter(silent=True))
        built = prepare.build_model(prepared).model
        own = built.generator.state_dict()
        assert all(torch.equal(own[name], value) for name, value in kept.items())
        assert built.main.electra.embeddings is built.generator.electra.embeddings


def test_a_saved_run_measures_the_same(run):
    """Built from the folder, with the generator beside it, the figures are those of the end of training."""

    folder, made = run
    before = json.loads((folder / "metrics.json").read_text())
    again = tiny.evaluate(folder, recipe.from_dict(made), "validation", Reporter(silent=True))
    for name in ("loss", "generator_loss", "discriminator_loss"):
        assert again[name]["value"] == pytest.approx(before[name]["value"], abs=1e-6)


def test_a_checkpoint_holds_every_weight_once(run, job):
    _, model = job
    state = checkpoint.trained_state(model, torch.optim.SGD(model.parameters()))
    numbers = {id(p) for p in model.parameters()}
    assert len(state) == len(numbers)
    assert sum(value.numel() for value in state.values()) == sum(p.numel() for p in model.parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    checkpoint.load_trained_state(
        model, state | {name: value.clone() for name, value in before.items() if name in state}
    )
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_killed_run_goes_on_to_the_same_bits(run, tmp_path):
    folder, made = run
    again = {**made, "output": {"dir": str(tmp_path / "run")}}
    assert children.child(children.train_and_die, again, 5) == -signal.SIGKILL
    assert children.child(children.train, again) == 0
    for part in (".", "generator"):
        one, other = (load_file(place / part / "model.safetensors") for place in (folder, tmp_path / "run"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_ranks_compute_the_same_step(tokenizer_folder, tmp_path):
    """One step of plain descent without dropout: the weights say whether the gradients agree."""
    found = []
    for number in (1, 2):
        place = tmp_path / str(number)
        place.mkdir()
        train = {
            "max_steps": 1,
            "optim": "sgd",
            "adam_beta1": 0.0,
            "learning_rate": 0.01,
            "max_grad_norm": 0,
            "weight_decay": 0.0,
        }
        made = source(place, str(tokenizer_folder), **train)
        statuses = [children.child(children.train, made)] if number == 1 else children.ranks(2, children.train, made)
        assert statuses == [0] * number
        parts = [load_file(place / "run" / part / "model.safetensors") for part in (".", "generator")]
        found.append((parts, json.loads((place / "run" / "metrics.json").read_text())))
    (one, figures), (two, again) = found
    for part in (0, 1):
        for name in one[part]:
            torch.testing.assert_close(two[part][name], one[part][name], atol=1e-7, rtol=0)
    for name in ("generator_loss", "discriminator_loss"):
        assert again[name]["value"] == pytest.approx(figures[name]["value"], abs=1e-6)
        assert again[name]["count"] == figures[name]["count"]


def test_draws_belong_to_the_row_and_the_epoch():
    tok = fine.tok("bert")
    row = {"input_ids": np.arange(20, 60)}
    drawn = [
        rtd.collate([row], tok, rtd.RtdOptions(), [batching.generator(0, epoch, number)])["uniform"].tobytes()
        for epoch in (0, 1)
        for number in (0, 1)
    ]
    assert len(set(drawn)) == 4
