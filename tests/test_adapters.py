"""Adapters: what works where, the same on reload, merged to the same logits, resumed to the same bits."""

import json
import random
import shutil
import signal

import children
import pytest
import tiny
import torch
import zoo
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from hftune import adapters, causal, checking, finished, heads, methods, models, predicting, recipe, shortcuts
from hftune import task as tasks
from hftune.decode import Decoding
from hftune.errors import UserError
from hftune.report import Reporter
from hftune.schema import Model, Peft

METHODS = [*adapters.MERGEABLE, *adapters.PROMPTS]
NEW = ("classifier", "score", "qa_outputs", "logits_proj", "classification_head", "pre_classifier")
SOME = ["bert", "xlnet", "gpt2", "t5"]  # in `make test`; all in `make test-slow`


def works(method, name, head):
    """What was measured with peft 0.21.2: methods that change weights do everywhere."""
    if method not in adapters.PROMPTS:
        return True
    if head in (zoo.CHOICE, zoo.MLM) or name == "xlnet" or (name in zoo.SEQ2SEQ and head != zoo.S2S):
        return False
    if method == "prefix":
        return name not in ("distilbert", "albert", "deberta-v2", "modernbert")
    return not (name in zoo.DECODERS and head == zoo.CLASSIFY)


def block(method, **more):
    return Peft.model_validate({"method": method, **small(method), **more})


def small(method):
    """Few tokens or a low rank, for the methods that have them."""
    return {"num_virtual_tokens": 4} if method in adapters.PROMPTS else {"r": 4} if method != "ia3" else {}


def adapted(method, name, head, path, **more):
    """A model of a folder with an adapter, its new head trained whole."""
    zoo.build(name, head).model.save_pretrained(path)
    built = zoo.build(name, head, path=str(path))
    new = frozenset(n for n, _ in built.model.named_parameters() if n.split(".")[0] in NEW)
    built = models.Built(built.model, built.summary, new)
    return adapters.attach(built, block(method, **more), head, 20, str(path), None, 0), new


def learn(model, batch, head, steps=3):
    """A few large steps; returns the parameters that got a gradient."""
    task = zoo.task(head)
    mode = shortcuts.choose(model, batch, task, None).head
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    moved = set()
    for _ in range(steps):
        heads.losses(model.train(), batch, task, None, heads.Criterion(head=mode))["loss"].total.backward()
        moved |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
        optimizer.zero_grad()
    return mode, moved


def one_row(name, head, batch):
    """The first row without padding."""
    here = slice(zoo.LENGTHS[0]) if zoo.tok(name).padding_side == "right" else slice(-zoo.LENGTHS[0], None)
    width = max(zoo.LENGTHS)
    return {k: v[:1, here] if v.ndim == 2 and v.shape[1] == width else v[:1] for k, v in batch.items()}, here


def depends_on_padding(model, name, head, batch):
    alone, here = one_row(name, head, batch)
    one, all_rows = zoo.outputs(model, alone, head), zoo.outputs(model, batch, head)
    first = all_rows[:, :1, here] if head == zoo.QA else all_rows[:1] if head == zoo.CLASSIFY else all_rows[:1, here]
    return float((one - first).abs().max()) / max(1.0, float(first.abs().max()))


def table(names):
    pairs = [(n, h) for n, h in zoo.PAIRS if n in names]
    return [(m, n, h) for m in METHODS for n, h in pairs]


def through(method, name, head, path):
    """Attached, trained, saved, reloaded and merged."""
    built, new = adapted(method, name, head, path / "base")
    model, batch = built.model, zoo.batch(name, head)
    plain = zoo.outputs(zoo.build(name, head, path=str(path / "base")).model, batch, head)
    assert zoo.outputs(model, batch, head).shape == plain.shape, "outputs stand at the text's own positions"
    mode, moved = learn(model, batch, head)
    assert mode == "fused" or head not in (zoo.MLM, zoo.CLM, zoo.S2S)
    still = {n for n, p in model.named_parameters() if p.requires_grad} - moved
    assert all(head == zoo.CHOICE and n.endswith("bias") for n in still), "only what all choices share cancels out"
    assert {n.split(".")[0] for n in new} <= {part for n in moved for part in n.split(".")}, "new heads are trained"
    trained = zoo.outputs(model, batch, head)
    assert not torch.allclose(trained, plain)
    if head != zoo.CHOICE:
        assert depends_on_padding(model, name, head, batch) < 1e-5
    model.save_pretrained(path / "run")
    again = adapters.restore(zoo.build(name, head, path=str(path / "run")), path / "run").model
    torch.testing.assert_close(zoo.outputs(again, batch, head), trained, atol=1e-6, rtol=1e-6)
    if method in adapters.MERGEABLE:
        adapters.merge(again).save_pretrained(path / "merged")
        merged = zoo.build(name, head, path=str(path / "merged"))
        assert not merged.new
        torch.testing.assert_close(zoo.outputs(merged.model, batch, head), trained, atol=1e-4, rtol=0)
    else:
        with pytest.raises(UserError, match="cannot be merged"):
            adapters.merge(again)


@pytest.mark.parametrize(("method", "name", "head"), [c for c in table(SOME) if works(*c)], ids=zoo.ident)
def test_a_method_trains_reloads_and_merges(method, name, head, tmp_path):
    through(method, name, head, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "name", "head"), [c for c in table(zoo.ARCHITECTURES) if works(*c) and c[1] not in SOME], ids=zoo.ident
)
def test_every_method_trains_reloads_and_merges(method, name, head, tmp_path):
    through(method, name, head, tmp_path)


def test_what_cannot_work_is_refused_from_the_configuration_alone():
    for method, name, head in table(zoo.ARCHITECTURES):
        config = models.configuration(Model(init=name, config=zoo.SIZE))
        if works(method, name, head):
            adapters.check(block(method), head, config)
            continue
        with pytest.raises(
            UserError, match=rf"peft\.method: {method} does not work here: .*\n.*these do: lora"
        ) as caught:
            adapters.check(block(method), head, config)
        offered = caught.value.hint.removeprefix("these do: ").split(", ")
        assert offered == [m for m in METHODS if works(m, name, head)]


@pytest.mark.parametrize(
    ("method", "name", "head"),
    [c for c in table(["bert", "distilbert", "gpt2", "bart"]) if not works(*c)],
    ids=zoo.ident,
)
def test_what_is_refused_does_not_work(method, name, head, tmp_path):
    """peft itself fails, or gives a row other outputs in a batch than alone."""
    try:
        built, _ = adapted(method, name, head, tmp_path)
        learn(built.model, zoo.batch(name, head), head)
        wrong = depends_on_padding(built.model, name, head, zoo.batch(name, head)) > 1e-3
    except (KeyError, ValueError, RuntimeError, NotImplementedError, UserError, TypeError):
        wrong = True
    assert wrong


def test_a_module_that_does_not_exist_is_answered_with_those_that_do():
    config = models.configuration(Model(init="bert", config=zoo.SIZE))
    adapters.check(block("lora", target_modules=["query", "attention.self.key"]), zoo.CLASSIFY, config)
    with pytest.raises(UserError, match=r"bert has no module 'q_proj'.*\n.*attention\.self\.query"):
        adapters.check(block("lora", target_modules=["query", "q_proj"]), zoo.CLASSIFY, config)
    for pattern in ("all-linear", r".*\.(query|key)"):
        adapters.check(block("lora", target_modules=pattern), zoo.CLASSIFY, config)
    with pytest.raises(UserError, match=r"'query', a regular expression (.|\n)*\[query\]") as fault:
        adapters.check(block("lora", target_modules="query"), zoo.CLASSIFY, config)
    assert fault.value.where == "peft.target_modules"
    with pytest.raises(UserError, match="is no regular expression"):
        adapters.check(block("lora", target_modules="(query"), zoo.CLASSIFY, config)
    unknown = models.configuration(Model(init="mobilebert", config={"num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"(?s)which modules of mobilebert lora should change.*query"):
        adapters.check(block("lora"), zoo.CLASSIFY, unknown)


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2"])
def test_all_linear_leaves_new_heads_alone(name, tmp_path):
    built, _ = adapted("lora", name, zoo.CLASSIFY, tmp_path, target_modules="all-linear")
    _, moved = learn(built.model, zoo.batch(name, zoo.CLASSIFY), zoo.CLASSIFY)
    assert len([n for n in moved if "lora_A" in n]) >= 6
    assert not [n for n in moved if "lora" in n and any(part in NEW for part in n.split("."))]


def test_virtual_tokens_do_not_stand_before_several_texts(tmp_path):
    built, _ = adapted("prompt", "gpt2", zoo.CLM, tmp_path)
    batch = zoo.batch("gpt2", zoo.CLM)
    batch["position_ids"] = torch.arange(12).expand(4, 12)
    with pytest.raises(UserError, match="several texts"):
        heads.losses(built.model, batch, zoo.task(zoo.CLM), None, heads.Criterion(head="full"))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["lora", "ia3", "prompt"])
def test_grown_embeddings_are_trained_saved_and_merged(method, name, tmp_path):
    """Tied (gpt2) and not (llama): tokens that were added have rows that the run must keep."""
    import copy

    zoo.build(name, zoo.CLM).model.save_pretrained(tmp_path / "base")
    tok = copy.deepcopy(zoo.tok(name))
    tok.add_special_tokens(
        {"additional_special_tokens": ["<|one|>", "<|two|>"]} if False else {"mask_token": "<|one|>"}
    )
    for number in range(8):  # beyond the rows that a multiple of eight leaves
        tok.add_tokens([f"<|more{number}|>"], special_tokens=True)

    def grown(path):
        built = models.build(Model(path=str(path)), zoo.CLM, zoo.tok(name), settings={}, seed=0)
        return models.grow(built, tok)

    built = grown(tmp_path / "base")
    assert "embeddings grown" in built.summary
    made = adapters.attach(built, block(method), zoo.CLM, 20, str(tmp_path / "base"), None, 0)
    batch = zoo.batch(name, zoo.CLM)
    batch["input_ids"][:, 1] = len(tok) - 1
    learn(made.model, batch, zoo.CLM)
    trained = zoo.outputs(made.model, batch, zoo.CLM)
    made.model.save_pretrained(tmp_path / "run")
    again = adapters.restore(grown(tmp_path / "run"), tmp_path / "run").model
    torch.testing.assert_close(zoo.outputs(again, batch, zoo.CLM), trained, atol=1e-6, rtol=1e-6)
    if method != "prompt":
        adapters.merge(again).save_pretrained(tmp_path / "merged")
        merged = models.build(Model(path=str(tmp_path / "merged")), zoo.CLM, tok, settings={}, seed=0)
        assert not merged.new
        torch.testing.assert_close(zoo.outputs(merged.model, batch, zoo.CLM), trained, atol=1e-4, rtol=0)


def test_regularization_has_the_gradient_that_peft_would_add(tmp_path):
    from accelerate import Accelerator

    from hftune.adalora import Ranks

    batch, taken = zoo.batch("bert", zoo.CLASSIFY), []
    for own in (False, True):
        model = adapted("adalora", "bert", zoo.CLASSIFY, tmp_path / str(own))[0].model.eval()
        if own:
            Ranks(model, Accelerator(cpu=True)).before(0)
            loss = heads.losses(model, batch, zoo.task(zoo.CLASSIFY), None, heads.Criterion())["loss"].total
            (loss / len(batch["labels"])).backward()
        else:
            model(**batch).loss.backward()  # peft adds it where the model computes the loss
        taken.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert taken[0].keys() == taken[1].keys()
    for name, gradient in taken[0].items():
        torch.testing.assert_close(taken[1][name], gradient, atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer_folder):
    """A pretrained model to adapt, with its tokenizer."""
    from hftune import tokenizer

    path = tmp_path_factory.mktemp("base")
    tok = models.prepare_tokenizer(tokenizer.load(str(tokenizer_folder)), "bert")
    models.build(Model.model_validate(tiny.MODEL), zoo.MLM, tok, settings={}, seed=3).model.save_pretrained(path)
    tokenizer.save(tok, path)
    return path


def source(base, place, method, **train):
    place.mkdir(exist_ok=True)
    found = tiny.classify(place, str(base), **train)
    peft = {"method": method, **small(method)}
    return {**found, "model": {"path": str(base)}, "tokenizer": {}, "peft": peft}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base):
    """Straight runs by method, made once."""
    made = {}

    def run(method):
        if method not in made:
            place = tmp_path_factory.mktemp(method)
            made[method] = place, source(base, place, method, max_steps=10, save_steps=2, save_total_limit=9)
            assert children.child(children.train, made[method][1]) == 0
        return made[method]

    return run


def weights(place):
    return load_file(place / "run" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("method", "first", "last"), [("lora", 3, 9), ("adalora", 3, 6), ("adalora", 9, 9), ("prefix", 3, 9)]
)
def test_a_killed_run_goes_on_to_the_same_bits(method, first, last, runs, tmp_path):
    place, recipe_source = runs(method)
    again = {**recipe_source, "output": {"dir": str(tmp_path / "run")}}
    assert children.child(children.train_and_die, again, random.Random().randint(first, last)) == -signal.SIGKILL
    assert children.child(children.train, again) == 0
    one, two = weights(place), weights(tmp_path)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    for saved in sorted((place / "run" / "checkpoints").glob("step-*/*.safetensors")):
        other = load_file(tmp_path / "run" / saved.relative_to(place / "run"))
        assert all(torch.equal(tensor, other[name]) for name, tensor in load_file(saved).items()), saved.parent.name


@pytest.mark.parametrize("method", ["lora", "adalora", "prompt"])
def test_a_run_measures_predicts_and_merges_as_it_ended(method, runs, base, tmp_path, capfd):
    place, recipe_source = runs(method)
    run, wanted = place / "run", recipe.from_dict(recipe_source)
    assert not (run / "model.safetensors").exists(), "an adapter alone is saved"
    assert not (run / "config.json").exists(), "transformers would look for whole weights beside it"
    ended = json.loads((run / "metrics.json").read_text())
    saved = recipe.load(run / "recipe.yaml")
    again = tiny.evaluate(run, saved, "validation", Reporter(silent=True))
    assert again["loss"]["value"] == pytest.approx(ended["loss"]["value"], abs=1e-6)
    rows = tiny.write_rows(
        tmp_path / "new.jsonl", [{"text": row["text"]} for row in tiny.lines("sentiment-tweets", limit=5)]
    )
    answers = list(predicting.predict_rows(run, saved, str(rows), None))
    assert {a["prediction"] for a in answers} <= {"negative", "neutral", "positive"}
    if method == "prompt":
        with pytest.raises(UserError, match="cannot be merged"):
            finished.merge(run, saved, tmp_path / "merged")
        return
    logging.enable_progress_bar()
    capfd.readouterr()
    told = finished.merge(run, saved, tmp_path / "merged")
    assert "new weights" not in told, "the adapter has them"
    assert told.endswith(f" with the adapter of {run}")
    assert "Writing" not in capfd.readouterr().err, "no bar of transformers"
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tok = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = tok(
        [row["text"] for row in tiny.lines("sentiment-tweets", limit=5)],
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=48,
    )
    _, model = finished.ready(run, saved)
    with torch.no_grad():
        torch.testing.assert_close(plain(**text).logits, model(**text).logits, atol=1e-4, rtol=0)
    assert pipeline("text-classification", str(tmp_path / "merged"))("What a day")[0]["label"] in {
        "negative",
        "neutral",
        "positive",
    }
    with pytest.raises(UserError, match="is there already"):
        finished.merge(run, saved, tmp_path / "merged")
    assert wanted.peft is not None


def test_peft_and_transformers_load_a_run(runs):
    from huggingface_hub import metadata_load
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    place, _ = runs("lora")
    run = place / "run"
    assert "`hftune merge` makes a plain model" in (run / "README.md").read_text()
    assert metadata_load(run / "README.md")["library_name"] == "peft", "the Hub shows how to load it"
    _, ours = finished.ready(run, recipe.load(run / "recipe.yaml"))
    batch = {"input_ids": torch.tensor([[2, 30, 31, 32, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(run, num_labels=3).eval()
    plain = AutoModelForSequenceClassification.from_pretrained(run, num_labels=3).eval()
    with torch.no_grad():
        for other in (theirs, plain):
            torch.testing.assert_close(other(**batch).logits, ours(**batch).logits, atol=1e-6, rtol=1e-6)


def test_a_run_whose_base_is_gone_says_which(runs, tmp_path):
    import shutil

    place, _ = runs("lora")
    shutil.copytree(place / "run", tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "/nowhere/base"
    (tmp_path / "run" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="changes the model /nowhere/base, which is not there"):
        finished.ready(tmp_path / "run", recipe.load(tmp_path / "run" / "recipe.yaml"))


def test_a_run_that_is_not_finished_has_no_adapter_yet(base, tmp_path):
    assert children.child(children.train_and_die, source(base, tmp_path, "lora"), 1) == -signal.SIGKILL
    with pytest.raises(UserError, match="run is not finished: it has no model yet"):
        finished.merge(tmp_path / "run", recipe.load(tmp_path / "run" / "recipe.yaml"), tmp_path / "merged")


def test_a_run_without_an_adapter_is_not_merged(base, tmp_path):
    plain = source(base, tmp_path, "lora", max_steps=1)
    plain.pop("peft")
    assert children.child(children.train, plain) == 0
    with pytest.raises(UserError, match="no adapter to merge"):
        finished.merge(tmp_path / "run", recipe.load(tmp_path / "run" / "recipe.yaml"), tmp_path / "merged")


@pytest.mark.parametrize("way", ["lora", "body"])
def test_a_base_that_changed_meanwhile_is_told(way, base, tmp_path):
    """What is trained was trained upon it, and no checkpoint holds it."""
    own = tmp_path / "base"
    shutil.copytree(base, own)
    made = source(own, tmp_path, "lora", save_steps=1, **({"freeze": "body"} if way == "body" else {}))
    if way == "body":
        del made["peft"]
    assert children.child(children.train_and_die, made, 3) == -signal.SIGKILL
    weights = load_file(own / "model.safetensors")
    weights["bert.encoder.layer.0.output.dense.weight"] += 1e-3
    save_file(weights, own / "model.safetensors", {"format": "pt"})

    def again():
        with pytest.raises(UserError, match=r"model\.path: the content of model.path changed.*\n.*--allow model.path"):
            children.train(made)

    assert children.child(again) == 0
    assert children.child(lambda: children.train(made, allow=["model.path"])) == 0


class Heard(Reporter):
    """Keeps the warnings."""

    def __init__(self):
        super().__init__(silent=True)
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


@pytest.mark.parametrize("method", ["lora", "adalora", "prompt"])
def test_an_adapter_upon_other_weights_than_its_own_is_told(method, base, tmp_path):
    own, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(base, own)
    assert children.child(children.train, source(own, tmp_path, method, max_steps=2)) == 0
    saved = recipe.load(run / "recipe.yaml")

    def told(merged):
        ways = [
            lambda to: finished.ready(run, saved, to),
            lambda to: tiny.evaluate(run, saved, "validation", to),
            *([lambda to: finished.merge(run, saved, tmp_path / merged, to)] if method != "prompt" else []),
        ]
        for way in ways:
            heard = Heard()
            way(heard)
            yield [text for text in heard.warnings if "base" in text]

    assert not any(told("before"))
    held = load_file(own / "model.safetensors")
    held["bert.encoder.layer.0.output.dense.weight"] += 1e-3
    save_file(held, own / "model.safetensors", {"format": "pt"})
    wanted = f"{own} has changed since {run} was trained upon it: the two together are another model"
    assert all(warnings == [wanted] for warnings in told("after"))


def test_a_head_in_whose_place_the_adapter_has_its_own_is_not_what_it_rests_on(base, tmp_path):
    first = source(base, tmp_path, "lora", max_steps=2)
    del first["peft"]
    assert children.child(children.train, first) == 0
    second = source(tmp_path / "run", tmp_path / "again", "lora", max_steps=2)
    for name in ("tweets", "held"):
        rows = tmp_path / "again" / f"{name}.jsonl"
        rows.write_text(rows.read_text().replace('"label": "', '"label": "other '))
    assert children.child(children.train, second) == 0
    heard, run = Heard(), tmp_path / "again" / "run"
    finished.ready(run, recipe.load(run / "recipe.yaml"), heard)
    assert not [text for text in heard.warnings if "has changed" in text]


def test_two_ranks_adapt_as_one(base, tmp_path):
    """Plain descent without dropout: regularization and allocation must not count twice."""
    found = []
    for number in (1, 2):
        place = tmp_path / str(number)
        made = source(
            base, place, "adalora", max_steps=3, optim="sgd", adam_beta1=0.0, learning_rate=0.1, weight_decay=0.0
        )
        dropless = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        made = {**made, "model": {"path": str(base), "config": dropless}}
        ends = [children.child(children.train, made)] if number == 1 else children.ranks(2, children.train, made)
        assert ends == [0] * number
        found.append(weights(place))
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"freeze": "body"}}, "with a frozen body peft has nothing to do"),
        ({"model": {**tiny.MODEL}, "tokenizer": {"path": "x"}}, "only what is pretrained can be kept"),
        ({"peft": {"method": "adalora"}, "train": {"gradual_unfreezing": 2}}, "deals its ranks"),
        ({"peft": {"method": "prefix"}, "train": {"gradient_checkpointing": True}}, "hands keys and values"),
        (
            {"peft": {"method": "prefix"}, "train": {"gradual_unfreezing": 2}},
            r"train\.gradual_unfreezing: .* lie in no layer",
        ),
        (
            {"peft": {"method": "prompt"}, "train": {"layerwise_lr_decay": 0.9}},
            r"train\.layerwise_lr_decay: .* in no layer",
        ),
        ({"peft": {"method": "lora", "target_modules": ["nope"]}}, "no module 'nope'"),
        ({"peft": {"method": "prompt", "num_virtual_tokens": 100}}, "behind 100 virtual ones, but the model has"),
        ({"peft": {"method": "prefix", "num_virtual_tokens": 999}}, "behind 999 virtual ones, but the model has"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_done(base, tmp_path, changes, words):
    made = {**source(base, tmp_path, "lora"), **changes}
    wanted = recipe.from_dict(made)
    with pytest.raises(UserError, match=words):
        children.train(made)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=words):
        checking.check(wanted)


def test_an_adapter_is_merged_before_it_is_trained_further(runs, tmp_path):
    place, recipe_source = runs("lora")
    further = {**recipe_source, "model": {"path": str(place / "run")}, "output": {"dir": str(tmp_path / "run")}}
    with pytest.raises(UserError, match=r"is an adapter.*\n.*hftune merge"):
        children.train(further)


def test_check_says_what_it_could_not_see(base, tmp_path):
    made = {**source(base, tmp_path, "lora"), "model": {"path": "owner/elsewhere"}}
    (told,) = checking.check(recipe.from_dict(made))["warnings"]
    assert told.startswith("model.path: not checked: owner/elsewhere")


def test_best_of_an_adapter_comes_with_its_ranks(base, tmp_path):
    made = source(
        base,
        tmp_path,
        "adalora",
        max_steps=8,
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        learning_rate=0.5,
    )
    assert children.child(children.train, made) == 0
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert state["state"] == "finished"
    ended = json.loads((tmp_path / "run" / "metrics.json").read_text())
    again = tiny.evaluate(
        tmp_path / "run", recipe.load(tmp_path / "run" / "recipe.yaml"), "validation", Reporter(silent=True)
    )
    assert again["loss"]["value"] == pytest.approx(ended["loss"]["value"], abs=1e-5)


def test_methods_pass_what_is_sound(base, tmp_path):
    wanted = recipe.from_dict(source(base, tmp_path, "lora"))
    task = tasks.load("classify").under(wanted.task.options)
    methods.check(wanted, task, wanted.task.options, models.configuration(wanted.model))


def test_further_modules_are_trained_whole(tmp_path):
    (built, _), wanted = adapted("lora", "bert", zoo.TAG, tmp_path, modules_to_save=["LayerNorm"]), "LayerNorm"
    _, moved = learn(built.model, zoo.batch("bert", zoo.TAG), zoo.TAG)
    assert len([n for n in moved if wanted in n]) == 10  # of the embeddings, and two of each layer
    with pytest.raises(UserError, match=r"peft\.modules_to_save: the model has no module 'nope'"):
        adapted("lora", "bert", zoo.TAG, tmp_path, modules_to_save=["nope"])


@pytest.mark.parametrize("name", ["roberta", "electra", "t5"])
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_a_head_that_is_new_in_part_is_saved_and_loaded(name, targets, tmp_path):
    """As of a classifier for another number of labels: below its outputs the head is the checkpoint's."""
    zoo.build(name, zoo.CLASSIFY).model.save_pretrained(tmp_path / "base")
    path, settings = str(tmp_path / "base"), {"num_labels": 4}

    def built(path):
        return models.build(Model(path=path), zoo.CLASSIFY, zoo.tok(name), settings=settings, seed=0)

    made = adapters.attach(built(path), block("lora", target_modules=targets), zoo.CLASSIFY, 20, path, None, 0)
    batch = zoo.batch(name, zoo.CLASSIFY)
    _, moved = learn(made.model, batch, zoo.CLASSIFY)
    assert any("out_proj" in n and "modules_to_save" in n for n in moved)
    made.model.save_pretrained(tmp_path / "run")
    again = adapters.restore(built(path), tmp_path / "run").model
    trained = zoo.outputs(made.model, batch, zoo.CLASSIFY)
    torch.testing.assert_close(zoo.outputs(again, batch, zoo.CLASSIFY), trained, atol=1e-6, rtol=1e-6)
    assert len(set(made.summary.split(", "))) == len(made.summary.split(", ")), "no module is named twice"


def test_ranks_fall_to_their_budget(runs):
    place, _ = runs("adalora")
    pattern = json.loads((place / "run" / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(map(sum, pattern.values())) == 4 * len(pattern) < sum(map(len, pattern.values())) == 6 * len(pattern)
    carried = {p.parent.name: load_file(p) for p in (place / "run" / "checkpoints").glob("step-*/carried.safetensors")}
    kinds = {name: {key.split("|")[0] for key in found} for name, found in carried.items()}
    assert kinds["step-2"] >= {"ipt", "exp_avg_ipt", "exp_avg_unc"}
    assert "rank" in kinds["step-8"]


@pytest.mark.parametrize(("optimizer", "bad"), [("adamw", 3), ("adamw", 7), ("adafactor", 7)])
def test_a_step_that_is_left_out_says_nothing_of_ranks(optimizer, bad, base, tmp_path):
    """Of ten steps the seventh fixes the ranks; left out, it leaves that to the next."""
    train = {"max_steps": 10, "save_steps": 1, "save_total_limit": 10, "optim": optimizer, "on_nonfinite": "skip"}
    made = source(base, tmp_path, "adalora", **train)

    def work():
        from hftune import adalora

        inner, before, at = heads.losses, adalora.Ranks.before, [-1]

        def losses(model, *words):
            found = inner(model, *words)
            if model.training and at[0] == bad:
                for part in found.values():
                    part.total = part.total * torch.nan
            return found

        def begin(self, step):
            at[0] = step + 1
            before(self, step)

        heads.losses, adalora.Ranks.before = losses, begin
        children.train(made)

    assert children.child(work) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["skipped_steps"] == 1
    carried = [load_file(tmp_path / "run" / "checkpoints" / f"step-{n}" / "carried.safetensors") for n in range(1, 11)]
    assert all(torch.isfinite(tensor).all() for found in carried for tensor in found.values())
    one, two, after = (carried[bad + more] for more in (-2, -1, 0))
    assert one.keys() == two.keys()
    assert all(torch.equal(two[name], tensor) for name, tensor in one.items()), "as if that step had not been"
    assert any(name not in after or not torch.equal(after[name], tensor) for name, tensor in two.items())
    assert {name.split("|")[0] for name in carried[-1]} == {"rank"}, "ranks are fixed"
    assert sum(int(kept.sum()) for kept in carried[-1].values()) == 4 * len(carried[-1])


def test_one_step_is_too_few_to_deal_ranks(base, tmp_path):
    assert children.child(children.train, source(base, tmp_path, "adalora", max_steps=1)) == 0


@pytest.mark.parametrize("method", ["prompt", "p-tuning"])
def test_behind_virtual_tokens_an_answer_is_the_same_in_every_batch(method, tmp_path):
    """Padding would stand between them and the text, where in training there is none."""
    base, tok = zoo.build("llama", zoo.CLM), zoo.tok("llama")
    torch.manual_seed(0)
    for parameter in base.model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    base.model.save_pretrained(tmp_path)
    chosen = Peft(method=method, num_virtual_tokens=4)
    model = adapters.attach(base, chosen, zoo.CLM, 1, str(tmp_path), None, 0).model.eval()
    prompts, decoding = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 40], [14, 15, 16, 17, 18]], Decoding(max_new_tokens=5)
    found = causal.reply(model, prompts, tok, decoding, range(3))
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        for _ in range(5):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        assert answer["prediction"] == tok.decode(ids[0, len(prompt) :], skip_special_tokens=True)
