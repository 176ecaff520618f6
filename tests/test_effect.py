"""Settings without effect: refused where they stand, unset where a later layer leaves them so."""

import itertools
import re

import pytest

from hftune import effect, faults, recipe, schema
from hftune import task as tasks
from hftune.errors import UserError

BASE = "task: {task}\nmodel: {{path: m}}\ndata: {{train: t.jsonl}}\noutput: {{dir: runs/x}}\n"
OPTIONS = {name: tasks.load(name).options for name in tasks.names()}
BLOCKS = [*(value for value in vars(schema).values() if isinstance(value, type) and issubclass(value, schema.Block))]
MARKED = [
    (block, name)
    for block in [*BLOCKS, *OPTIONS.values()]
    for name, field in block.model_fields.items()
    if effect.ONLY in effect.marks(field)
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text, *overrides, task="mlm", name="recipe.yaml"):
    with open(name, "w", encoding="utf-8") as file:
        file.write(BASE.format(task=task) + text)
    return recipe.load(name, overrides)


def faults_of(*words, **more):
    with pytest.raises(UserError) as error:
        read(*words, **more)
    assert all(fault.hint == effect.REMEDY for fault in error.value.faults)
    return [(fault.where, fault.message) for fault in error.value.faults]


@pytest.mark.parametrize(("block", "name"), MARKED, ids=lambda value: getattr(value, "__name__", value))
def test_every_mark_asks_for_what_its_block_can_have(block, name):
    """That values are ones that the other may have, and that it has one of them or not is known: its default is a value."""
    properties = faults.shape(block)["properties"]["task"] if block in OPTIONS.values() else faults._inline(
        block.model_json_schema(), block.model_json_schema().get("$defs", {})
    )  # fmt: skip
    assert not block.model_fields[name].is_required()
    needed = {k: v for k, v in effect.marks(block.model_fields[name])[effect.ONLY].items() if k in block.model_fields}
    assert needed or issubclass(block, tasks.Options)
    for other, condition in needed.items():
        if isinstance(condition, list) and condition != [None]:
            inner = properties["properties"][other]
            choices = [c for b in faults.branches(inner) for c in b.get("enum", [b.get("const")])]
            assert set(condition) <= {*choices, True, False} - {None}, (name, other)


@pytest.mark.parametrize(
    ("task", "text", "said"),
    [
        ("mlm", "train:\n  optim: sgd\n  adam_beta2: 0.98", "train.adam_beta2 has an effect only with optim: adamw"),
        ("mlm", "train:\n  optim: adafactor\n  adam_beta1: 0.8", "train.adam_beta1 has an effect only with optim: adamw or"),
        ("mlm", "train:\n  warmup_ratio: 0.1\n  lr_scheduler_type: constant", "warmup_ratio has an effect only with lr_sch"),
        ("mlm", "train: {warmup_ratio: 0.1, warmup_steps: 3}", "warmup_ratio has an effect only without warmup_steps"),
        ("mlm", "train: {batch_size: 8, batch_tokens: 99}", "batch_size has an effect only without batch_tokens"),
        ("mlm", "peft:\n  method: ia3\n  r: 16", "peft.r has an effect only with method: lora, rslora, dora or adalora"),
        ("mlm", "peft:\n  method: prompt\n  target_modules: [q]", "target_modules has an effect only with method: lora"),
        ("mlm", "peft:\n  method: lora\n  num_virtual_tokens: 5", "num_virtual_tokens has an effect only with method: pr"),
        ("mlm", "tokenizer:\n  path: t\n  lowercase: true", "tokenizer.lowercase has an effect only with train: word"),
        ("mlm", "tokenizer: {vocab_size: 9}", "tokenizer.vocab_size has an effect only with train: wordpiece, bpe or"),
        ("mlm", "tokenizer: {train: unigram, min_frequency: 9}", "only with train: wordpiece or bpe"),
        ("mlm", "eval: {resamples: 0, confidence: 0.9}", "eval.confidence has an effect only with resamples above 0"),
        ("{name: qa, null_threshold: 1.5}", "", "task.null_threshold has an effect only with unanswerable: true"),
        ("{name: clm, separator: x}", "", "task.separator has an effect only with kind: prompt"),
        ("{name: clm, fim_spm_rate: 0.1}", "", "task.fim_spm_rate has an effect only with fim_rate above 0"),
        ("{name: classify, kind: regression, label_names: [a, b]}", "", "only with kind: single or multi"),
        ("{name: classify, kind: multi, class_weights: balanced}", "", "class_weights has an effect only with kind: single"),
        ("{name: tag, label_counts: [1, 2]}", "", "label_counts has an effect only with class_weights: balanced"),
        ("{name: rtd, generator: g, generator_size: 0.5}", "", "generator_size has an effect only without generator"),
        ("{name: span, denoisers: ul2, rate: 0.5}", "", "task.rate has an effect only without denoisers"),
        ("{name: translate, do_sample: true, num_beams: 2}", "", "num_beams has an effect only with do_sample: false"),
        ("{name: translate, form: encoder-decoder, separator: x}", "", "only with form: decoder-only"),
        ("{name: translate, form: decoder-only, source_lang: de}", "", "only with form: encoder-decoder"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_told_where_it_stands(task, text, said):
    ((place, message),) = faults_of(text, task=task)
    assert said in message
    key = message.split()[0].rpartition(".")[2]
    lines = (BASE.format(task=task) + text).split("\n")
    number, at = next(
        (i, found.start() + 1) for i, line in enumerate(lines, 1) if (found := re.search(rf"\b{key}:", line))
    )
    assert place == f"recipe.yaml:{number}:{at}"


def test_several_are_told_at_once():
    found = faults_of("train: {optim: sgd, adam_beta2: 0.9, adam_epsilon: 1e-6}\ntokenizer: {min_frequency: 3}\n")
    assert [place.removeprefix("recipe.yaml:") for place, _ in found] == ["5:21", "5:38", "6:13"]


def test_rows_that_are_not_drawn_have_no_weight():
    for split in ("validation", "test"):
        ((place, message),) = faults_of("", f"data.{split}=[a.jsonl, {{path: b.jsonl, weight: 0.5}}]")
        assert place.startswith(f"command line: data.{split}=")
        assert "has a weight, which has an effect only with rows of data.train" in message
    with pytest.raises(UserError, match=r"--data: weight has an effect only in data\.train"):
        recipe.source("{path: a.jsonl, weight: 2}", "--data")


def test_a_default_and_what_has_an_effect_are_taken():
    read("train: {optim: sgd, adam_beta2: 0.999, adam_beta1: 0.5, warmup_steps: 0, lr_scheduler_type: constant}\n")
    read("tokenizer: {vocab_size: 8000}\npeft: {method: ia3, num_virtual_tokens: 20, target_modules: [k]}\n")
    read("", task="{name: classify, kind: multi, separator: ';', label_names: [a, b]}")
    for name in OPTIONS:
        made = read("", task=name)
        assert recipe.from_dict(made.model_dump()) == made


LAYERS = [  # task, lower layer, overrides, what becomes of the lower layer's settings
    ("mlm", "train: {adam_beta2: 0.9, adam_beta1: 0.8}", ["train.optim=sgd"], {"train.adam_beta2": 0.999, "train.adam_beta1": 0.8}),
    ("mlm", "train: {adam_beta2: 0.9}", ["train.optim=adamw"], {"train.adam_beta2": 0.9}),
    ("mlm", "train: {warmup_ratio: 0.1}", ["train.lr_scheduler_type=constant"], {"train.warmup_ratio": 0.0}),
    ("mlm", "train: {warmup_ratio: 0.1}", ["train.warmup_steps=5"], {"train.warmup_ratio": 0.0, "train.warmup_steps": 5}),
    ("mlm", "train: {warmup_steps: 5}", ["train.warmup_ratio=0.1"], {"train.warmup_ratio": 0.1, "train.warmup_steps": None}),
    ("mlm", "train: {batch_tokens: 99}", ["train.batch_size=4"], {"train.batch_tokens": None, "train.batch_size": 4}),
    ("mlm", "train: {batch_size: 4}", ["train.batch_tokens=99"], {"train.batch_tokens": 99, "train.batch_size": 32}),
    ("mlm", "peft: {method: lora, r: 4, target_modules: [q]}", ["peft.method=ia3"], {"peft.r": 8, "peft.target_modules": ["q"]}),
    ("mlm", "peft: {method: lora, r: 4, target_modules: [q]}", ["peft.method=prompt"], {"peft.r": 8, "peft.target_modules": None}),
    ("mlm", "tokenizer: {train: bpe, lowercase: true}", ["tokenizer.path=t"], {"tokenizer.lowercase": False}),
    ("mlm", "tokenizer: {train: bpe, min_frequency: 5, vocab_size: 900}", ["tokenizer.train=unigram"],
     {"tokenizer.min_frequency": 2, "tokenizer.vocab_size": 900}),
    ("{name: clm, kind: text, fim_rate: 0.5, fim_spm_rate: 0.1}", "", ["task.kind=chat"],
     {"task.fim_rate": 0.0, "task.fim_spm_rate": 0.5}),
    ("{name: translate, num_beams: 4, length_penalty: 2.0}", "", ["task.num_beams=1"], {"task.length_penalty": 1.0}),
    ("{name: translate, num_beams: 4, length_penalty: 2.0}", "", ["task.do_sample=true"],
     {"task.num_beams": 1, "task.length_penalty": 1.0}),
    ("{name: translate, do_sample: true, top_k: 5, seed: 3}", "", ["task.do_sample=false", "task.num_beams=3"],
     {"task.top_k": 0, "task.seed": 0, "task.num_beams": 3}),
    ("{name: span, rate: 0.5}", "", ["task.denoisers=ul2"], {"task.rate": 0.15}),
    ("{name: classify, kind: multi, separator: ';'}", "", ["task.kind=single"], {"task.separator": ","}),
]  # fmt: skip


@pytest.mark.parametrize(("task", "text", "overrides", "expected"), LAYERS)
def test_what_a_later_layer_leaves_without_effect_is_unset(task, text, overrides, expected, here):
    found = dict(recipe._flat(read(text, *overrides, task=task).model_dump()))
    assert {key: found[key] for key in expected} == expected
    upper: dict = {}
    for key, value in (text.split("=", 1) for text in overrides):
        block, name = key.split(".")
        upper.setdefault(block, []).append(f"{name}: {value}")
    lines = "".join(f"{block}: {{{', '.join(items)}}}\n" for block, items in upper.items())
    (here / "upper.yaml").write_text(f"extends: recipe.yaml\n{lines}", encoding="utf-8")
    read(text, task=task)
    assert recipe.load("upper.yaml") == read(text, *overrides, task=task), (
        "an inheriting recipe does as the command line"
    )


def test_a_later_layer_cannot_ask_for_what_an_earlier_one_leaves_without_effect():
    read("train: {optim: sgd}\n")
    found = faults_of("train: {optim: sgd}\n", "train.adam_beta2=0.9", "train.seed=3")
    assert found == [("command line: train.adam_beta2=0.9", "train.adam_beta2 has an effect only with optim: adamw")]


@pytest.mark.parametrize("task", ["translate", "summarize"])
def test_what_the_model_decides_is_judged_when_it_is_known(task, here):
    from transformers import GPT2Config, MarianConfig

    from hftune import prepare

    plain, options = tasks.load(task), OPTIONS[task]
    for key, config in itertools.product(("separator", "source_lang", "target_lang"), (GPT2Config(), MarianConfig())):
        given = options(**{key: "x"})
        if (key == "separator") == (config.model_type == "gpt2"):
            assert getattr(prepare.complete_options(plain, given, config, None), key) == "x"
        else:
            with pytest.raises(UserError, match=rf"task\.{key}: {key} has an effect only with form: "):
                prepare.complete_options(plain, given, config, None)
