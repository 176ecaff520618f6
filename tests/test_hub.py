"""What comes from the Hub: one commit of it, looked at as any folder is, and one line about what it does not give."""

import errno
import json
import os
import re
import shutil
import warnings

import httpx2
import huggingface_hub
import pytest
import tiny
import zoo
from huggingface_hub import errors

from hftune import adapters, checking, configs, consistency, hub, methods, models, prepare, recipe, run, task, tokenizer
from hftune.errors import UserError
from hftune.report import Reporter
from hftune.schema import Model, Peft

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with its tokenizer, in parts."""
    path = tmp_path_factory.mktemp("model")
    zoo.build("bert", zoo.MLM).model.save_pretrained(path, max_shard_size="60KB")
    tokenizer.save(zoo.tok("bert"), path)
    return path


@pytest.fixture
def kept(folder, tmp_path, monkeypatch):
    """The model as owner/name in a cache of the Hub's layout: the folder of its commit."""
    home = tmp_path / "models--owner--name"
    shutil.copytree(folder, home / "snapshots" / FIRST)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(FIRST)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    known = (hub.answers, hub._snapshot)
    for answers in known:
        answers.cache_clear()
    yield home / "snapshots" / FIRST
    for answers in known:
        answers.cache_clear()


def load():
    """All that a run takes from a Hub id."""
    configs.configuration(Model(path="owner/name"))
    tokenizer.load("owner/name")
    return zoo.build("bert", zoo.MLM, path="owner/name")


def pickled(place):
    for file in place.glob("model*"):
        file.unlink()
    (place / "pytorch_model.bin").write_bytes(b"x")


DAMAGE = {
    "a pickle": (pickled, r"holds its weights as a pickle \(pytorch_model.bin\)"),
    "no weights": (lambda place: [file.unlink() for file in place.glob("model*")], "holds no weights"),
    "a part missing": (lambda place: min(place.glob("model-*")).unlink(), "missing, and model.safetensors.index.json"),
    "a part cut short": (lambda place: os.truncate(min(place.glob("model-*")), 5000), "cut short: 5,000 bytes"),
    "no index": (lambda place: (place / "model.safetensors.index.json").write_text("{}"), "no index of weights"),
    "a tokenizer": (
        lambda place: (place / "tokenizer.json").write_text("{"),
        "cannot load the tokenizer owner/name: E",
    ),
    "no tokenizer": (lambda place: [file.unlink() for file in place.glob("tok*")], "no tokenizer in"),
    "a configuration": (
        lambda place: (place / "config.json").write_text("{"),
        "cannot load the configuration of owner",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_with_a_copy_is_told_as_of_a_folder(kept, damage):
    """And not that the Hub cannot be reached, which is true and of no help; nor by a traceback."""
    harm, says = DAMAGE[damage]
    harm(kept)
    with pytest.raises(UserError, match=says) as caught:
        load()
    assert "\n" not in caught.value.message
    assert not isinstance(caught.value, hub.Unreachable)


def test_all_is_of_one_commit_though_main_moves_on(kept):
    config = configs.configuration(Model(path="owner/name"))
    home = kept.parent.parent
    shutil.copytree(kept, home / "snapshots" / SECOND)
    wider = json.loads((kept / "config.json").read_text()) | {"intermediate_size": 999}
    (home / "snapshots" / SECOND / "config.json").write_text(json.dumps(wider))
    (home / "refs" / "main").write_text(SECOND)
    assert load().model.config.intermediate_size == config.intermediate_size
    hub._snapshot.cache_clear()
    assert configs.configuration(Model(path="owner/name")).intermediate_size == 999, "the next run takes what is there"


def adapted(place):
    """An adapter of owner/base, with the configuration of its base beside it, as many are shared."""
    for file in place.glob("model*"):
        file.unlink()
    (place / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base", "peft_type": "LORA"}')


def test_an_adapter_on_the_hub_is_no_model_to_be_trained(kept, tmp_path):
    """transformers would load it into its base, and save what was trained without the base's weights."""
    adapted(kept)
    made = recipe.from_dict({
        "task": "mlm", "model": {"path": "owner/name"}, "data": {"train": "a.txt"}, "output": {"dir": str(tmp_path / "run")},
    })  # fmt: skip
    options = made.task.options
    with pytest.raises(UserError, match="owner/name is an adapter, not a model that could be trained") as caught:
        methods.check(made, task.load("mlm").under(options), options, None)
    assert "hftune merge" not in caught.value.hint, "which is for runs"
    assert configs.base(Model(path="owner/name")).path == "owner/base"


@pytest.mark.parametrize("said", ["{", "[]", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_without_the_name_of_its_base_is_told(tmp_path, said):
    """And not taken for one of a Hub id named None."""
    (tmp_path / "adapter_config.json").write_text(said)
    with pytest.raises(UserError, match=r"adapter_config\.json names no base model"):
        configs.base(Model(path=str(tmp_path)))


def test_an_adapter_is_of_the_commit_that_it_was_trained_upon(kept, tmp_path):
    """Its base may move on at the Hub; with other weights the two together are another model."""
    made = adapters.attach(load(), Peft(method="lora"), zoo.MLM, 9, "owner/name", None, 0)
    made.model.save_pretrained(tmp_path / "run")
    (kept.parent.parent / "refs" / "main").write_text(SECOND)
    base = configs.base(Model(path=str(tmp_path / "run")))
    assert (base.path, base.revision) == ("owner/name", FIRST)


def test_an_adapter_is_saved_without_asking_the_hub_about_its_base(kept, tmp_path, monkeypatch):
    """Whether embeddings grew is known; peft would ask, and without a network warn twice."""
    from peft.utils import save_and_load

    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", lambda *_, **__: pytest.fail("the Hub was asked"))
    made = adapters.attach(load(), Peft(method="lora"), zoo.MLM, 9, "owner/name", None, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.model.save_pretrained(tmp_path / "run")
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


def test_a_run_says_which_commit_it_began_with(kept, tmp_path):
    made = tiny.mlm(tmp_path, max_steps=1) | {"model": {"path": "owner/name"}, "tokenizer": {}}
    run.train(recipe.from_dict(made), Reporter(silent=True))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["commits"] == {"owner/name": FIRST}
    assert "\nbase_model: owner/name\n" in (tmp_path / "run" / "README.md").read_text()


def test_a_run_goes_on_with_the_commit_that_it_began_with(kept, tmp_path):
    """Another dropout there would give other weights, and other weights under an adapter could not go on at all."""
    made = tiny.mlm(tmp_path, max_steps=1) | {
        "model": {"path": "owner/name"},
        "tokenizer": {},
        "peft": {"method": "lora"},
    }
    run.train(recipe.from_dict(made), Reporter(silent=True))
    home = kept.parent.parent
    shutil.copytree(kept, home / "snapshots" / SECOND)
    other = json.loads((kept / "config.json").read_text()) | {"hidden_dropout_prob": 0.9}
    (home / "snapshots" / SECOND / "config.json").write_text(json.dumps(other))
    min((home / "snapshots" / SECOND).glob("model-*")).write_bytes(b"other weights")
    (home / "refs" / "main").write_text(SECOND)
    hub._snapshot.cache_clear()
    run.train(recipe.from_dict(made, ["train.max_steps=2"]), Reporter(silent=True))
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (found["step"], found["commits"]) == (2, {"owner/name": FIRST})
    assert not hub.HELD, "only for the time of the run"


# --- a Hub that answers --------------------------------------------------------------------------------------------


@pytest.fixture
def online(kept, monkeypatch):
    """A Hub that gives what `kept` holds; what was asked for is kept."""
    asked = []

    def download(path, **more):
        asked.append((path, more["revision"], more["allow_patterns"]))
        return str(kept)

    monkeypatch.setattr(hub, "answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: ["config.json", "pytorch_model.bin"])
    return asked


def test_weights_are_fetched_by_name_and_only_when_they_are_wanted(online, kept):
    configs.configuration(Model(path="owner/name", revision="v1"))
    tokenizer.load("owner/name", "v1")
    assert [asked[:2] for asked in online] == [("owner/name", "v1")]
    assert not any("safetensors" in pattern or pattern == "*" for pattern in online[0][2])
    models.load(
        "owner/name",
        zoo.MLM,
        configs.configuration(Model(path=str(kept))),
        Model(path="owner/name", revision="v1"),
        False,
    )
    parts = sorted(file.name for file in kept.glob("model-*"))
    assert len(parts) > 1
    assert online[1:] == [("owner/name", FIRST, ["model.safetensors"]), ("owner/name", FIRST, parts)]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_cache_that_may_only_be_read_serves_what_it_holds(kept, monkeypatch, number):
    real = huggingface_hub.snapshot_download

    def download(path, **more):
        if not more.get("local_files_only"):
            raise OSError(number, "may not be written to", "/cache/.locks")
        return real(path, **more)

    monkeypatch.setattr(hub, "answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert configs.configuration(Model(path="owner/name")).model_type == "bert"
    with pytest.raises(UserError, match=r"owner/other cannot be kept here: .*/cache/.locks"):
        configs.configuration(Model(path="owner/other"))


def test_a_pickle_on_the_hub_is_refused_and_nobody_is_asked_to_convert_it(online, kept, monkeypatch):
    """transformers would have a service open a pull request at the model's repository."""
    import transformers.modeling_utils as theirs

    monkeypatch.setattr(theirs, "auto_conversion", lambda *_, **__: pytest.fail("a conversion was asked for"))
    for file in kept.glob("model*"):
        file.unlink()
    with pytest.raises(UserError, match=r"owner/name holds its weights as a pickle \(pytorch_model.bin\)"):
        zoo.build("bert", zoo.MLM, path="owner/name")


def answer(kind, status):
    return kind(
        f"{status} told at length\n\nover lines",
        response=httpx2.Response(status, request=httpx2.Request("GET", "http://h")),
    )


def caused(kind, cause):
    error = kind("look at the cause")
    error.__cause__ = cause
    return error


REFUSALS = {
    "gated": (answer(errors.GatedRepoError, 403), "owner/name is gated", r"ask for access at .*/owner/name;"),
    "a typo": (answer(errors.RepositoryNotFoundError, 404), "no model owner/name on the Hub", "correct the name; .*private"),
    "a revision": (answer(errors.RevisionNotFoundError, 404), "owner/name has no revision v9", "branches, tags"),
    "a token": (answer(errors.HfHubHTTPError, 401), "it answers 401", "HF_TOKEN"),
    "too many": (answer(errors.HfHubHTTPError, 429), "it answers 429", "later"),
    "down": (caused(errors.LocalEntryNotFoundError, answer(errors.HfHubHTTPError, 502)), "it answers 502", "later"),
    "cut off": (httpx2.RemoteProtocolError("peer closed connection"), "cannot fetch owner/name: peer closed", "again"),
    "a full disk": (OSError(errno.ENOSPC, "No space", "/cache/x"), "cannot be kept here: No space left .*/cache/x", "HF_HOME"),
    "no name": (errors.HFValidationError("Repo id must"), "owner/name is no folder here and no name", "owner/name"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_why_the_hub_gives_nothing_is_told(online, monkeypatch, case):
    """A typo, a lacking permission, a Hub that is down and a full disk are mended in different ways."""
    error, says, mend = REFUSALS[case]

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    for place, ask in (
        ("model.path", lambda: configs.configuration(Model(path="owner/name", revision="v9"))),
        ("tokenizer", lambda: tokenizer.load("owner/name", "v9")),
    ):
        with pytest.raises(UserError, match=says) as caught:
            ask()
        assert caught.value.where == place
        assert "\n" not in caught.value.message
        assert re.search(mend, caught.value.hint)


def test_check_says_that_it_did_not_look_at_rows_on_the_hub(tmp_path):
    """A name that nobody has was among what had no faults."""
    here = tiny.corpus(tmp_path)
    data = {
        "train": [str(here), "owner/rows"],
        "validation": "owner/rows",
        "test": str(here),
        "cache_dir": str(tmp_path / "c"),
    }
    found = checking.check(recipe.from_dict(tiny.mlm(tmp_path) | {"data": data}))
    told = [line for line in found["warnings"] if "not checked" in line]
    assert told == [
        f"data.{split}: not checked: the rows of owner/rows, fetched from the Hub by a run"
        for split in ("validation", "train")
    ]


# --- revisions -----------------------------------------------------------------------------------------------------


def lone(tmp_path, **more):
    return recipe.from_dict(
        {"task": "mlm", "data": {"train": "a.txt"}, "output": {"dir": str(tmp_path / "run")}, **more}
    )


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"tokenizer": {"path": "other/tok"}}, ("other/tok", None)),
        ({"tokenizer": {"path": "other/tok", "revision": "v2"}}, ("other/tok", "v2")),
        ({"tokenizer": {"revision": "v2"}}, ("owner/name", "v2")),
        ({}, ("owner/name", "v1")),
    ],
)
def test_the_revision_of_a_model_is_not_asked_of_another_repository(tmp_path, monkeypatch, more, wanted):
    asked = []

    def load(path, revision, *_):
        asked.append((path, revision))
        return zoo.tok("bert")

    monkeypatch.setattr(tokenizer, "load", load)
    made = lone(tmp_path, model={"path": "owner/name", "revision": "v1"}, **more)
    prepare.load_tokenizer(made, "bert", task.load("mlm"), made.task.options, Reporter(silent=True))
    assert asked == [wanted]


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"model": {"path": "{here}", "revision": "v1"}}, "model.revision"),
        ({"model": {"init": "bert", "revision": "v1"}, "tokenizer": {"path": "owner/name"}}, "model.revision"),
        ({"model": {"path": "owner/name"}, "tokenizer": {"path": "{here}", "revision": "v1"}}, "tokenizer.revision"),
        ({"model": {"init": "bert"}, "tokenizer": {"train": "bpe", "revision": "v1"}}, "tokenizer.revision"),
        ({"model": {"path": "owner/name", "revision": "v1"}, "tokenizer": {"revision": "v1"}}, None),
        ({"model": {"encoder": "{here}", "decoder": "owner/name", "revision": "v1"}}, None),
        ({"model": {"encoder": "owner/name", "decoder": "owner/name", "revision": "v1"}}, None),
        ({"model": {"encoder": "owner/name", "decoder": "other/name", "revision": "v1"}}, "model.revision"),
    ],
)
def test_a_revision_of_what_is_here_is_not_passed_over(tmp_path, more, where):
    made = lone(tmp_path, **json.loads(json.dumps(more).replace("{here}", str(tmp_path))))
    found = [fault for fault in consistency.check(made, task.load("mlm")) if "revision" in fault.message]
    assert [fault.where for fault in found] == [where] * bool(where)


@pytest.mark.parametrize("path", ["closed/model", "a" * 300, "~nobody-of-that-name/model"])
def test_a_folder_that_may_not_be_read_or_cannot_be_is_one_line(path, monkeypatch):
    """Whoever runs the tests may be root, who may read everything."""
    stat = os.stat

    def closed(path, **options):
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(UserError) as fault:
        hub.locate(path, None, "model.path")
    assert fault.value.where == "model.path"
