import random
import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from hftune import recipe, schema, task
from hftune.errors import Faults, UserError


class FillOptions(task.Options):
    max_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens of a row")
    mask_rate: Annotated[float, Field(ge=0, le=1)] = 0.15
    whole_word: bool = False

    @model_validator(mode="after")
    def _words(self) -> "FillOptions":
        if self.whole_word and not self.mask_rate:
            raise ValueError("whole_word needs a mask_rate")
        return self


class SortOptions(task.Options):
    max_length: Annotated[int, Field(ge=8)] = 256
    kind: Literal["single", "multi"] = "single"
    label_names: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _several(self) -> "SortOptions":
        if self.label_names is not None and len(self.label_names) < 2:
            raise ValueError("label_names needs two labels")
        return self


class NeedyOptions(task.Options):
    language: str = Field(description="code of the language")


TASKS = {"fill": FillOptions, "sort": SortOptions, "needy": NeedyOptions}
REAL = (task.names, task.load)
NAME = "recipe.yaml"
GOOD = """\
task: {name: sort, max_length: 64}
model:
  path: models/small
  config: {dropout: 0.1}
data:
  train: [a.jsonl, {path: b.jsonl, weight: 2}]
  validation: v.jsonl
  columns: {text: review}
train:
  learning_rate: 2e-5
  max_steps: 100
peft: {method: lora, target_modules: [q, v]}
output: {dir: runs/x}
"""
SMALL = "task: fill\nmodel: {init: bert}\ndata: {train: a.txt}\noutput: {dir: runs/x}\n"


@pytest.fixture(autouse=True, scope="module")
def _tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "names", lambda: sorted(TASKS))
        patch.setattr(task, "load", lambda name: types.SimpleNamespace(options=TASKS[name]))
        patch.setattr(task, "summary", lambda name: f"The task {name}.")
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text, *overrides, name=NAME):
    """The recipe of a text, from the working directory."""
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return recipe.load(name, overrides)


def faults_of(text, *overrides):
    with pytest.raises(UserError) as error:
        read(text, *overrides)
    return getattr(error.value, "faults", [error.value])


def test_a_recipe_is_read_with_its_defaults(here):
    found = read(GOOD)
    assert found.task.name == "sort"
    assert found.task.options == SortOptions(max_length=64)
    assert [source.path for source in found.data.train] == ["a.jsonl", "b.jsonl"]
    assert found.data.validation[0].path == "v.jsonl"
    assert (found.train.learning_rate, found.train.max_steps, found.train.batch_size) == (2e-5, 100, 32)
    assert found.peft.target_modules == ["q", "v"]
    assert isinstance(read(SMALL, "train.num_train_epochs=2").train.num_train_epochs, float)
    with pytest.raises(ValueError, match="frozen"):
        found.train.seed = 1


# Overrides and inheritance


def test_overrides_replace_merge_and_unset(here):
    found = read(
        GOOD,
        "train.learning_rate=3e-5",
        "data.train=[c.jsonl,d.jsonl]",
        "model.config.hidden_size=64",
        "peft=",
        "train.seed=1",
        "train.seed=2",
        "data.validation.limit=5",
    )
    assert found.train.learning_rate == 3e-5
    assert [source.path for source in found.data.train] == ["c.jsonl", "d.jsonl"]
    assert found.model.config == {"dropout": 0.1, "hidden_size": 64}
    assert found.peft is None
    assert found.train.seed == 2
    assert (found.data.validation[0].path, found.data.validation[0].limit) == ("v.jsonl", 5)
    assert read(GOOD, "model.config=").model.config == {}
    assert read(GOOD, "model.config={}", "train={}") == read(GOOD, "model.config=")


def test_a_list_on_the_command_line_is_not_lost_to_a_key_within_it(here):
    overrides = ["data.train=[c.jsonl,d.jsonl]", "data.train.limit=5"]
    (fault,) = faults_of(GOOD, *overrides)
    assert "data.train is given as a list" in fault.message
    assert fault.where == f"command line: {overrides[1]}"
    assert read(GOOD, "data.train=c.jsonl", overrides[1]).data.train[0].limit == 5
    assert len(read(GOOD, overrides[1], overrides[0]).data.train) == 2  # what is said last replaces it


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.init=bert"], {"model.init": "bert", "model.path": None}),
        (["model.encoder=a", "model.decoder=b"], {"model.path": None, "model.encoder": "a", "model.decoder": "b"}),
        (["model.init="], {"model.path": "models/small"}),
        (["model.revision=r", "model.path=b"], {"model.path": "b", "model.revision": "r"}),
        (["data.validation_fraction=0.1"], {"data.validation": None, "data.validation_fraction": 0.1}),
        (["data.validation_fraction=0"], {"data.validation_fraction": 0.0, "data.validation[0].path": "v.jsonl"}),
        (["train.num_train_epochs=1"], {"train.max_steps": None, "train.num_train_epochs": 1.0}),
        (["train.num_train_epochs=1", "train.max_steps=7"], {"train.max_steps": 7}),
        (["train.batch_tokens=100"], {"train.batch_tokens": 100, "train.batch_size": 32}),
        (["task=fill"], {"task.name": "fill", "task.max_length": 128}),
        (["task=sort"], {"task.name": "sort", "task.max_length": 64}),
        (["task=fill", "task.mask_rate=0.3"], {"task.name": "fill", "task.mask_rate": 0.3}),
        (["task.mask_rate=0.3", "task=fill"], {"task.name": "fill", "task.mask_rate": 0.3}),
    ],
)
def test_what_excludes_another_unsets_it_in_the_layer_below(here, overrides, expected):
    flat = {key: value for key, value, _ in recipe.differences(read(GOOD, *overrides), read(SMALL))}
    same = dict(recipe._flat(read(GOOD, *overrides).model_dump())) | flat
    assert {key: same.get(key) for key in expected} == expected


def test_a_recipe_extends_others_of_its_own_folder(here):
    (here / "base" / "deep").mkdir(parents=True)
    (here / "base" / "deep" / "root.yaml").write_text(GOOD)
    (here / "base" / "middle.yaml").write_text("extends: deep/root.yaml\ntrain: {seed: 7, max_steps: 9}\ntokenizer:\n")
    found = read("extends: base/middle.yaml\ntrain: {max_steps: 10}\ndata: {train: c.jsonl}\nmodel:\n  config:\n")
    assert (found.train.seed, found.train.max_steps, found.train.learning_rate) == (7, 10, 2e-5)
    assert [source.path for source in found.data.train] == ["c.jsonl"]
    assert found.model.config == {"dropout": 0.1}  # a block left empty says nothing
    none = read("extends: base/middle.yaml\nmodel: {config: {}}\ntrain: {}\ndata: {columns: {}}\n")
    assert (none.model.config, none.data.columns, none.train.seed) == ({}, {}, 7)


def test_faults_in_inherited_files_stand_at_their_own_place(here):
    (here / "base.yaml").write_text(GOOD + "eval:\n  limt: 3\n")
    (fault,) = faults_of("extends: base.yaml\n")
    assert (fault.where, fault.hint) == ("base.yaml:15:3", "did you mean eval.limit?")


def test_what_extends_nothing_or_itself_is_told(here):
    (here / "a.yaml").write_text("extends: recipe.yaml\n")
    (fault,) = faults_of("extends: a.yaml\n")
    assert (fault.where, fault.hint) == ("a.yaml:1:1", "recipe.yaml → a.yaml → recipe.yaml")
    (fault,) = faults_of("task: fill\nextends: nowhere.yaml\n")
    assert fault.where == f"{NAME}:2:1"
    assert "nowhere.yaml: does not exist" in fault.message
    for value in ("[a, b]", "3", "''"):
        (fault,) = faults_of(f"extends: {value}\n")
        assert "wanted the path of a recipe" in fault.message


# Faults: (text, overrides, where, message, hint)

TRAIN = SMALL + "train:\n  "
CASES: list[tuple[str, list[str], str, str, str]] = [
    (SMALL + "learning_rate: 1e-4", [], "5:1", "learning_rate: unknown key", "did you mean train.learning_rate?"),
    (TRAIN + "learning_rat: 1e-4", [], "6:3", "train.learning_rat: unknown key", "did you mean train.learning_rate?"),
    (TRAIN + "Learning-Rate: 1e-4", [], "6:3", "unknown key", "did you mean train.learning_rate?"),
    (TRAIN + "lr: 1e-4", [], "6:3", "train.lr: unknown key", "did you mean train.learning_rate?"),
    (TRAIN + "per_device_train_batch_size: 8", [], "6:3", "unknown key", "train.batch_size, which is global"),
    (TRAIN + "gradient_accumulation_steps: 4", [], "6:3", "unknown key", "nothing to set: train.batch_size is global"),
    (TRAIN + "evaluation_strategy: steps", [], "6:3", "unknown key", "train.eval_steps"),
    (TRAIN + "fp16: true", [], "6:3", "unknown key", "write train.precision: fp16"),
    (TRAIN + "bf16: true", [], "6:3", "unknown key", "write train.precision: bf16"),
    (TRAIN + "epochs: 3", [], "6:3", "unknown key", "did you mean train.num_train_epochs?"),
    (TRAIN + "max_seq_length: 512", [], "6:3", "unknown key", "did you mean task.max_length?"),
    (SMALL + "output_dir: x", [], "5:1", "unknown key", "did you mean output.dir?"),
    (SMALL + "model_name_or_path: x", [], "5:1", "unknown key", "did you mean model.path?"),
    (SMALL + "trust_remote_code: true", [], "5:1", "unknown key", "--trust-remote-code on the command line"),
    (SMALL + "eval: {batch_size: 3}", [], "5:8", "unknown key", "did you mean train.batch_size or eval.batch_tokens?"),
    (SMALL + "train.seed: 3", [], "5:1", "train.seed: unknown key", "write seed in the block train"),
    (SMALL + "label_names: [a]", [], "5:1", "unknown key", "option of the task sort"),
    (SMALL + "zzz: 3", [], "5:1", "zzz: unknown key", "the keys of a recipe are task, model,"),
    (TRAIN + "max_steps: ten", [], "6:3", "train.max_steps is 'ten', wanted a positive whole number", ""),
    (TRAIN + "max_steps: '10'", [], "6:3", "train.max_steps is '10', wanted", "write 10, without quotes"),
    (TRAIN + "max_steps: 1_000", [], "6:3", "is '1_000'", "write 1000, without"),
    (TRAIN + "max_steps: 1,000", [], "6:3", "is '1,000'", "write 1000, without"),
    (TRAIN + "learning_rate: 0,001", [], "6:3", "is '0,001'", "write 0.001, with a decimal point"),
    (TRAIN + "learning_rate: 2,5e-5", [], "6:3", "is '2,5e-5'", "write 2.5e-5, with a decimal point"),
    (TRAIN + "max_steps: ١٢", [], "6:3", "is '١٢'", "write 12, without"),
    (TRAIN + "max_steps: 1e3", [], "6:3", "train.max_steps is 1e3, wanted a positive whole", "write 1000"),
    (TRAIN + "max_steps: 0", [], "6:3", "train.max_steps is 0, wanted a positive whole number", ""),
    (TRAIN + "max_steps: true", [], "6:3", "train.max_steps is true, wanted a positive", ""),
    (TRAIN + "learning_rate: true", [], "6:3", "is true, wanted a positive number", ""),
    (TRAIN + "learning_rate:", [], "6:3", "train.learning_rate is empty (null), wanted a positive number", ""),
    (TRAIN + "learning_rate: [1, 2]", [], "6:3", "is a list, wanted a positive number", ""),
    (TRAIN + "learning_rate: .inf", [], "6:3", "train.learning_rate is .inf", ""),
    (TRAIN + "learning_rate: .nan", [], "6:3", "train.learning_rate is", ""),
    (TRAIN + "warmup_ratio: 6", [], "6:3", "wanted a number, at least 0 and at most 1", ""),
    (TRAIN + "compile: yes", [], "6:3", "train.compile is 'yes', wanted true or false", "write true"),
    (TRAIN + "compile: 1", [], "6:3", "train.compile is 1, wanted true or false", ""),
    (TRAIN + "optim: AdamW", [], "6:3", "wanted one of adamw, adafactor", "did you mean adamw?"),
    (TRAIN + "precision: 16", [], "6:3", "wanted one of auto, fp32, bf16, fp16", ""),
    (TRAIN + "max_time: 90", [], "6:3", "wanted text such as 90s, 30m, 8h", ""),
    (TRAIN + "max_time: 90 minutes", [], "6:3", "wanted text such as 90s, 30m, 8h", ""),
    (TRAIN + "seed: 1\n  seed: 2", [], "7:3", "the key seed is given twice", f"first at {NAME}:6:3"),
    (SMALL + "train: fast", [], "5:1", "train is 'fast', wanted a block of keys such as batch_size", ""),
    (SMALL + "tokenizer: {path: a, train: bpe}", [], "5:1", "tokenizer: give path or train, not both", ""),
    (SMALL + "peft: {r: 8}", [], "5:1", "peft.method is missing", "the PEFT method"),
    (SMALL + "peft: {method: lora, target_modules: [q, 3]}", [], "5:42", "target_modules[1] is 3, wanted text", ""),
    (SMALL + "eval: {metrics: bleu}", [], "5:8", "eval.metrics is 'bleu', wanted a list of texts", "write [bleu]"),
    (SMALL.replace("dir: runs/x", ""), [], "4:1", "output.dir is missing", "run folder"),
    (SMALL.replace("runs/x", "123"), [], "4:10", "output.dir is 123, wanted text", 'write "123"'),
    (SMALL.replace("runs/x", "''"), [], "4:10", "output.dir is empty text", ""),
    (SMALL.replace("output: {dir: runs/x}", ""), [], "1:1", "output is missing", ""),
    (SMALL.replace("init: bert", "init: bert, path: x"), [], "2:1", "model: give exactly one of init, path", ""),
    (SMALL.replace("{train: a.txt}", "{train: []}"), [], "3:8", "data.train is a list, wanted", ""),
    (SMALL.replace("a.txt", "[a.txt, {file: b}]"), [], "3:23", "data.train[1].path is missing", "glob"),
    (SMALL.replace("a.txt", "[a.txt, 3]"), [], "3:23", "data.train[1] is 3, wanted text or a block of keys", ""),
    (SMALL.replace("a.txt", "{path: a, wieght: 2}"), [], "3:25", "data.train.wieght: unknown", "data.train.weight?"),
    (SMALL.replace("a.txt", "a.txt, columns: {text: 3}"), [], "3:32", "data.columns.text is 3, wanted text", ""),
    (SMALL.replace("fill", "{name: fill, max_length: 3}"), [], "1:20", "task.max_length is 3, wanted a whole", ""),
    (SMALL.replace("fill", "{name: fill, max_lenth: 9}"), [], "1:20", "unknown key", "did you mean task.max_length?"),
    (SMALL.replace("fill", "{name: fill, whole_word: 1}"), [], "1:20", "task.whole_word is 1, wanted true", ""),
    (SMALL.replace("fill", "{name: sort, label_names: [a]}"), [], "1:1", "task: label_names needs two labels", ""),
    (SMALL.replace("fill", "{name: sort, label_names: [a, 1]}"), [], "1:37", "task.label_names[1] is 1", 'write "1"'),
    (SMALL.replace("fill", "fil"), [], "1:1", "task.name is 'fil', wanted the name of a task", "did you mean fill?"),
    (SMALL.replace("fill", "{name: 3}"), [], "1:8", "task.name is 3, wanted the name of a task", "fill, needy, sort"),
    (SMALL.replace("fill", "{max_length: 9}"), [], "1:1", "task.name is missing", "tasks: fill, needy, sort"),
    (SMALL.replace("fill", "[fill]"), [], "1:1", "task is a list, wanted the name of a task", ""),
    (SMALL.replace("fill", "needy"), [], "1:1", "task.language is missing", "code of the language"),
    (SMALL.replace("task: fill", ""), [], "2:1", "task is missing", "tasks: fill, needy, sort"),
    ("", [], "1:1", "the recipe is empty", "task, model, data and output"),
    ("# nothing\n", [], "1:1", "the recipe is empty", ""),
    ("- task: fill\n", [], "1:1", "a recipe is a block of keys, this is a list", ""),
    ("just text", [], "1:1", "a recipe is a block of keys, this is 'just text'", ""),
    (SMALL + "train: {seed: 1", [], "5:16", "not YAML", "too early"),
    (SMALL + "\x1b[31mred: 1".replace("\x1b", ""), [], "5:1", "not YAML", ""),
    (SMALL + '"\\e[31mred": 1', [], "5:1", "\\x1b[31mred: unknown key", ""),
    (SMALL, ["train.seed"], "", "not of the form KEY=VALUE", "for example train.learning_rate=3e-5"),
    (SMALL, ["=3"], "", "not of the form KEY=VALUE", ""),
    (SMALL, ["train..seed=3"], "", "not of the form KEY=VALUE", ""),
    (SMALL, ["train.lr=3e-5"], "", "train.lr: unknown key", "did you mean train.learning_rate?"),
    (SMALL, ["train.seed=x"], "", "train.seed is 'x', wanted a whole number, at least 0", ""),
    (SMALL, ["data.train=*.jsonl"], "", "*.jsonl refers to nothing", "quotes"),
    (SMALL, ["train.seed=[1"], "", "not YAML", ""),
    (SMALL, ["train="], "", "train is empty (null), wanted a block", ""),
    (SMALL, ["model.path=x", "model.init=bert"], "", "model: give exactly one of", ""),
    (SMALL, ["extends=x"], "", "extends: unknown key", ""),
]


@pytest.mark.parametrize(("text", "overrides", "where", "message", "hint"), CASES)
def test_each_fault_has_its_place_and_a_hint(here, text, overrides, where, message, hint):
    found = faults_of(text, *overrides)
    matching = [fault for fault in found if message in fault.message]
    assert len(matching) == 1, [str(fault) for fault in found]
    assert hint in (matching[0].hint or "")
    if where:
        assert matching[0].where == f"{NAME}:{where}"
    elif len(overrides) == 1:
        assert matching[0].where == f"command line: {overrides[0]}"
    assert all("\n" not in fault.message for fault in found)


def test_keys_that_contradict_each_other_are_told_where_the_last_was_said(here):
    made = SMALL.replace("task: fill", "task: {name: fill, whole_word: true, mask_rate: 0.1}")
    assert read(made).task.options.mask_rate == 0.1
    (fault,) = faults_of(made, "task.mask_rate=0", "train.seed=1")
    assert "whole_word needs a mask_rate" in fault.message
    assert fault.where == "command line: task.mask_rate=0"
    (fault,) = faults_of(made.replace("0.1", "0"), "train.seed=1")
    assert fault.where == f"{NAME}:1:1", "no key that it names was said later than the block"


def test_all_faults_come_at_once_in_the_order_of_the_file(here):
    text = (
        "task: {name: fill, x: 1}\nmodel: {init: bert, attention: fast}\ntrian: {}\ndata: {train: 3}\ntrain: {lr: 1}\n"
    )
    found = faults_of(text, "train.seed=x")
    assert [fault.where for fault in found] == [
        *(f"{NAME}:{place}" for place in ("1:1", "1:20", "2:21", "3:1", "4:8", "5:9")),
        "command line: train.seed=x",
    ]
    with pytest.raises(Faults) as error:
        read(text)
    assert len(str(error.value).splitlines()) == 11  # six faults, all but one with a hint
    assert len(faults_of(SMALL + "".join(f"x{i}: 1\n" for i in range(5000)))) == 51


def test_a_union_complains_once_and_where_it_hurts(here):
    (fault,) = faults_of(SMALL + "peft: {method: lora, target_modules: [q, 3]}")
    assert fault.message == "peft.target_modules[1] is 3, wanted text"
    (fault,) = faults_of(SMALL + "peft: {method: lora, target_modules: 3}")
    assert fault.message == "peft.target_modules is 3, wanted a list of texts or text"
    (fault,) = faults_of(SMALL.replace("a.txt", "a.txt, max_errors: ."))
    assert fault.hint is None, "a dot is no number in quotes"


# The environment


def test_variables_are_put_into_paths_alone(here, monkeypatch):
    monkeypatch.setenv("PLACE", "/big disk")
    text = SMALL.replace("a.txt", "['${PLACE}/a.txt', {path: '${PLACE}/b'}]").replace("runs/x", "'${PLACE}/runs'")
    found = read(text + "tokenizer: {chat_template: '${PLACE}'}\n", "data.cache_dir=${PLACE}")
    assert [source.path for source in found.data.train] == ["/big disk/a.txt", "/big disk/b"]
    assert (found.output.dir, found.data.cache_dir) == ("/big disk/runs", "/big disk")
    assert found.tokenizer.chat_template == "${PLACE}"
    assert read(SMALL.replace("runs/x", "$PLACE")).output.dir == "$PLACE"


def test_a_tilde_is_the_home_folder_where_something_is_written_too(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    found = read(SMALL, "output.dir=~/runs/x", "data.cache_dir=~/cache")
    assert (found.output.dir, found.data.cache_dir) == (f"{here}/runs/x", f"{here}/cache")


@pytest.mark.parametrize(
    ("written", "value", "message"),
    [
        ("${ABSENT}/x", None, "the environment has no ${ABSENT}"),
        ("${}", None, "the environment has no ${}"),
        ("${PLACE", "/x", "the environment has no ${PLACE"),
        ("${PLACE}", "${OTHER}", "holds ${"),
        ("${HF_TOKEN}", "hf_secret", "may be a secret"),
        ("${AWS_SECRET_ACCESS_KEY}", "s3cr3t", "may be a secret"),
    ],
)
def test_variables_that_cannot_be_put_in_are_told(here, monkeypatch, written, value, message):
    if value:
        monkeypatch.setenv(written.strip("${}"), value)
    (fault,) = faults_of(SMALL.replace("runs/x", f"'{written}'"))
    assert fault.where == f"{NAME}:4:10"
    assert message in fault.message
    assert "output.dir" in fault.message
    assert value is None or "s3cr3t" not in str(fault)


# There and back

NUMBER = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
PATHS = TEXT.filter(lambda text: text and "${" not in text)
ANY = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)
POSITIVE = st.integers(1, 2**62)
RATE = st.floats(0, exclude_min=True, allow_infinity=False)


def block(**fields: Any) -> Any:
    return st.fixed_dictionaries({}, optional=fields)


NAMES = st.dictionaries(TEXT, TEXT, max_size=2)
READING = {"limit": st.none() | POSITIVE, "columns": NAMES, "prefix": TEXT}
SOURCE = st.fixed_dictionaries({"path": PATHS}, optional={"weight": RATE, **READING})
LABELS = st.none() | st.lists(TEXT, min_size=2, max_size=3)
RECIPES = st.fixed_dictionaries(
    {
        "task": st.sampled_from(["fill", "sort"])
        | st.fixed_dictionaries({"name": st.just("sort")}, optional={"label_names": LABELS})
        | st.fixed_dictionaries({"name": st.just("fill")}, optional={"mask_rate": st.floats(0, 1)}),
        "model": st.fixed_dictionaries({"path": PATHS}, optional={"config": st.dictionaries(TEXT, ANY, max_size=3)})
        | st.fixed_dictionaries({"init": PATHS}),
        "data": block(
            train=PATHS | SOURCE | st.lists(PATHS | SOURCE, min_size=1, max_size=3),
            test=st.none() | st.fixed_dictionaries({"path": PATHS}, optional=READING),
            encoding=TEXT,
        ),
        "output": st.fixed_dictionaries({"dir": PATHS}),
    },
    optional={
        "tokenizer": block(chat_template=st.none() | TEXT)
        | st.fixed_dictionaries({"train": st.just("bpe")}, optional={"vocab_size": st.integers(1, 10**7)}),
        "peft": st.none() | st.just({"method": "lora"}) | st.just({"method": "ia3", "target_modules": ["q", "no"]}),
        "train": block(
            learning_rate=RATE,
            seed=st.integers(0, 2**63),
            lr_scheduler_kwargs=st.dictionaries(TEXT, ANY, max_size=2),
            compile=st.booleans(),
        ),
        "eval": block(metrics=st.none() | st.lists(TEXT, max_size=2), confidence=st.floats(0.1, 0.9)),
    },
)


@given(RECIPES)
@settings(max_examples=150, deadline=None)
def test_a_dumped_recipe_is_the_same_recipe(tmp_path_factory, data):
    try:
        found = recipe.from_dict(data)
    except UserError as error:
        assume("there is no home folder" not in str(error))  # of a path such as ~0
        raise
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(recipe.dump(found), encoding="utf-8")
    again = recipe.load(path)
    assert again == found
    assert repr(again) == repr(found)  # types and the last bit of every float too
    assert recipe.from_dict(found.model_dump()) == found
    assert recipe.differences(found, again) == []


def test_a_dump_writes_out_every_default_in_the_order_of_the_schema(here):
    text = recipe.dump(read(SMALL.replace("runs/x", "läufe/日本")))
    tops = [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert tops == list(schema.Recipe.model_fields)
    for name in schema.Train.model_fields:
        assert f"\n  {name}: " in text
    assert "adam_epsilon: 1.0e-08" in text
    assert "dir: läufe/日本" in text


def test_data_of_a_command_line_is_checked_alike():
    found = recipe.from_dict(
        {"task": "sort", "model": {"path": "m"}, "data": {"train": "f"}, "output": {"dir": "o"}}, ["train.seed=3"]
    )
    assert (found.task.name, found.data.train[0].path, found.train.seed) == ("sort", "f", 3)
    with pytest.raises(Faults) as error:
        recipe.from_dict(
            {"task": "sort", "model": {"path": "m"}, "data": {"train": "a\0b"}, "train": {"seed": float("nan")}}
        )
    assert {fault.where for fault in error.value.faults} == {"command line"}
    assert {fault.message for fault in error.value.faults} >= {
        "output is missing",
        "a\\x00b holds a NUL or half a surrogate pair",
    }


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parent.parent.glob("recipes/*.yaml")), ids=lambda path: path.stem
)
def test_shipped_recipes_are_read_with_the_real_tasks_and_survive_a_dump(here, monkeypatch, path):
    monkeypatch.setattr(task, "names", REAL[0])
    monkeypatch.setattr(task, "load", REAL[1])
    found = recipe.load(path)
    assert read(recipe.dump(found)) == found
    assert found.task.name in str(recipe.json_schema()["properties"]["task"])


# Resuming, and editors


def test_differences_name_keys_and_marks_say_what_they_mean(here):
    before = read(GOOD)
    after = read(
        GOOD, "train.max_steps=200", "train.logging_steps=1", "model.config.x=1",
        "data.train=[a.jsonl,{path: b.jsonl, weight: 3}]",
        "task.max_length=32", "peft=", "data.test=t.jsonl", "output.dir=y",
    )  # fmt: skip
    found = {key: (old, new) for key, old, new in recipe.differences(before, after)}
    assert found["train.max_steps"] == (100, 200)
    assert found["data.train[1].weight"] == (2.0, 3.0)
    assert found["model.config.x"] == (None, 1)
    assert found["task.max_length"] == (64, 32)
    assert found["peft.method"] == ("lora", None)
    marks = {key: recipe.mark(key) for key in found}
    assert {key for key, mark in marks.items() if mark == "extend"} == {"train.max_steps"}
    free = {key for key, mark in marks.items() if mark == "free"}
    assert {"train.logging_steps", "output.dir", "data.test[0].path"} <= free
    assert not free & {"model.config.x", "data.train[1].weight", "task.max_length", "peft.method"}
    assert recipe.mark("train.learning_rate") is None


def test_an_empty_block_differs_in_what_is_put_into_it_alone(here):
    plain, more = (read(SMALL, *given) for given in ([], ["model.config.x=1", "data.columns.text=body"]))
    assert recipe.differences(plain, more) == [("model.config.x", None, 1), ("data.columns.text", None, "body")]


def test_every_mark_names_keys_that_exist():
    assert set(recipe._marked("replaces")) | set(recipe._marked("free")) | set(recipe._marked("extend"))
    for key, rivals in recipe._marked("replaces").items():
        owner = {"model": schema.Model, "tokenizer": schema.Tokenizer, "data": schema.Data, "train": schema.Train}[
            key.split(".")[0]
        ]
        assert set(rivals) <= set(owner.model_fields)


def test_names_of_other_tools_are_no_keys_here_and_lead_to_keys():
    from hftune.faults import FOREIGN, keys, shape

    known = {key for key, _ in keys(shape(FillOptions))}
    options = {"task.mask_rate", "task.max_length"}
    for name, target in FOREIGN.items():
        assert " " in target or target in known | options, name
        assert name not in {key.rpartition(".")[2] for key in known}, name


def test_the_json_schema_tells_every_key_and_every_task():
    found = recipe.json_schema()
    assert set(found["properties"]) == {*schema.Recipe.model_fields, "extends"}
    names, *blocks = found["properties"]["task"]["anyOf"]
    assert names == {"enum": ["fill", "needy", "sort"]}
    assert [b["properties"]["name"]["const"] for b in blocks] == names["enum"]
    assert set(blocks[0]["properties"]) == {"name", *FillOptions.model_fields}
    assert set(blocks[1]["required"]) == {"name", "language"}
    assert found["properties"]["train"]["properties"]["optim"]["enum"][0] == "adamw"
    assert "$ref" not in str(found)


# Anything at all

TOKENS = [
    *(":", "-", "  ", "\n", "\t", "'", '"', "[", "]", "{", "}", "&a ", "*a", "!x ", "? ", "|\n", ">", "#", "%", "@"),
    *("null", "true", "no", "1e999", "-1", "0x", ".nan", ".inf", "9" * 400, "<<: ", "${HOME}", "${", "---\n"),
    *("日本", "\u202e", "\ufeff", "\0", "\ud800", "é" * 50, "train:\n", "task: fill\n", "model.path", "x" * 300),
    *("[" * 50, "a: &a [*a]\n", "extends: recipe.yaml\n"),
]


def mutate(text: str, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, lines = rng.randrange(len(text) + 1), text.splitlines(keepends=True) or [""]
        line = rng.randrange(len(lines))
        kind = rng.randrange(7)
        if kind == 0:
            text = text[:at] + rng.choice(TOKENS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randrange(1, 9) :]
        elif kind == 2:
            text = text[:at]
        elif kind == 3:
            lines.insert(rng.randrange(len(lines)), lines[line])
            text = "".join(lines)
        elif kind == 4:
            lines[line] = " " * rng.randrange(4) + lines[line].lstrip()
            text = "".join(lines)
        elif kind == 5:
            head, colon, _ = lines[line].partition(":")
            lines[line] = f"{head}{colon} {rng.choice(TOKENS)}\n"
            text = "".join(lines)
        else:
            words = text.split(" ")
            i, j = rng.randrange(len(words)), rng.randrange(len(words))
            words[i], words[j] = words[j], words[i]
            text = " ".join(words)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1 and data:
        at = rng.randrange(len(data))
        data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    return data


def test_nothing_but_user_errors_escapes_from_2000_mutations(here):
    rng = random.Random(20240607)
    path = here / NAME
    good, faults = 0, []
    for _ in range(2000):
        path.write_bytes(mutate(rng.choice([GOOD, SMALL]), rng))
        try:
            found = recipe.load(path)
        except UserError as error:
            faults += getattr(error, "faults", [error])
        else:
            good += 1
            path.write_text(recipe.dump(found), encoding="utf-8")
            assert recipe.load(path) == found
    assert 50 < good < 1000
    for fault in faults:
        assert fault.message.isprintable()
        assert (fault.hint or "").isprintable()
        assert fault.where


def test_nothing_but_user_errors_escapes_from_overrides(here):
    rng = random.Random(7)
    keys = ["train.seed", "data.train", "model", "task", "task.max_length", "data.train.path", "", ".", "a.b", "peft.r"]
    refused = 0
    for _ in range(500):
        texts = [
            rng.choice(keys) + rng.choice(["=", "", "= "]) + rng.choice(TOKENS) for _ in range(rng.randrange(1, 4))
        ]
        try:
            read(GOOD, *texts)
        except UserError:
            refused += 1
    assert 250 < refused < 500


def test_reading_recipes_loads_no_heavy_library():
    code = "import sys, hftune.recipe; print({'torch', 'transformers', 'datasets', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
