"""What SECURITY.md promises, each promise by a test."""

import json
import pickle
import re
import shlex
import shutil
import sys
from pathlib import Path

import broken
import children
import pytest
import tiny

from hftune import card, checking, cli, data, errors, models, recipe
from hftune.errors import Faults, UserError
from hftune.report import Reporter
from hftune.safety import clean, markdown, without_tokens
from hftune.schema import Data

TOKEN = "hf_" + "aB3" * 11 + "x"
ESCAPES = "\x1b]0;title\x07\x1b[31mred\u202egnp\r"


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory):
    broken.models(tmp_path_factory.mktemp("models"))


def faults(source):
    """Text of all that is wrong with a recipe."""
    with pytest.raises(UserError) as caught:
        checking.check(recipe.from_dict(source))
    return str(caught.value)


class Bomb:
    """A pickle that would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


# A recipe is data


@pytest.mark.parametrize("value", ["!!python/object/apply:os.system [id]", "!!python/name:os.system", "!x y"])
def test_no_tag_builds_an_object(tmp_path, value):
    (tmp_path / "recipe.yaml").write_text(broken.yaml(tmp_path, "max_steps: 4", f"max_steps: {value}"))
    with pytest.raises(UserError, match="tags"):
        recipe.load(tmp_path / "recipe.yaml")


def test_aliases_depth_and_size_are_bounded(tmp_path):
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for text, says in ((laughs, "10,000 values"), ("[" * 40 + "]" * 40, "32 levels"), ("a: " + "x" * 2**21, "1 MiB")):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(UserError, match=says):
            recipe.load(tmp_path / "recipe.yaml")


def test_the_environment_is_read_in_paths_only_and_no_secret_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", str(tmp_path))
    source = broken.classify(tmp_path)
    assert recipe.from_dict({**source, "output": {"dir": "${PLACE}/run"}}).output.dir == f"{tmp_path}/run"
    kept = recipe.from_dict(broken.classify(tmp_path, tokenizer={"chat_template": "${PLACE}"}))
    assert kept.tokenizer.chat_template == "${PLACE}"
    with pytest.raises(Faults, match="secret"):
        recipe.from_dict({**source, "output": {"dir": "${AWS_SECRET_ACCESS_KEY}"}})


def test_a_chat_template_cannot_reach_python(tmp_path):
    gone = tmp_path / "made-by-template"
    attempt = "{{ cycler.__init__.__globals__.os.system('touch " + str(gone) + "') }}"
    said = faults(
        broken.clm(
            tmp_path,
            [{"messages": broken.TALK}],
            task={"kind": "chat"},
            tokenizer={"chat_template": attempt + broken.TEMPLATE},
        )
    )
    assert "refuses" in said
    assert not gone.exists()


# Pickles


def test_weights_that_are_a_pickle_are_refused_and_not_run(tmp_path):
    folder, mark = broken.copied(tmp_path, "bert"), tmp_path / "mark"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    source = broken.classify(tmp_path, model={"path": str(folder)})
    assert "pickle" in faults(source)
    with pytest.raises(UserError, match="pickle"):
        children.train(source)
    assert not mark.exists()


def test_an_adapter_that_is_a_pickle_is_refused_and_not_run(tmp_path):
    from hftune import adapters

    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(UserError, match="pickle"):
        adapters.restore(models.Built(None, ""), tmp_path / "adapter")
    assert not (tmp_path / "mark").exists()


def test_the_code_loads_no_pickle():
    package = Path(models.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(pickle\.loads?|torch\.load|joblib|np\.load|dill)\(", text), path


# Code that comes with a model


def test_code_of_a_checkpoint_runs_only_by_the_option(tmp_path):
    folder, mark = broken.copied(tmp_path, "bert"), tmp_path / "mark"
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import BertConfig\nclass OwnConfig(BertConfig):\n    model_type = 'own'\n"
    )
    source = broken.classify(tmp_path, model={"path": str(folder)})
    assert "--trust-remote-code" in faults(source)
    assert not mark.exists()
    with pytest.raises(UserError):  # the code runs, and has no head for the task
        checking.check(recipe.from_dict(source), trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize("block", ["model", "tokenizer", "data", "task", "train"])
def test_a_recipe_cannot_allow_code(tmp_path, block):
    source = broken.classify(tmp_path, **{block: {"trust_remote_code": True}})
    with pytest.raises(Faults, match="command line"):
        recipe.from_dict(source)


# Folders


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_data_is_not_read_through_a_link_out_of_its_folder(tmp_path, kind):
    (tmp_path / "outside").mkdir()
    rows = Path(broken.rows(tmp_path / "outside", broken.tweets(), "secret.jsonl"))
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.jsonl" if kind == "file" else inside / "link").symlink_to(rows if kind == "file" else rows.parent)
    for path in (str(inside), f"{inside}/**/*.jsonl"):
        with pytest.raises(UserError, match=r"leaves the folder|no file"):
            list(data.open_split(Data(train=[{"path": path}]), "train", ["text"]))


def test_an_index_of_weights_cannot_name_a_file_elsewhere(tmp_path):
    folder = broken.copied(tmp_path, "bert")
    shutil.move(folder / "model.safetensors", tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside its folder" in faults(broken.classify(tmp_path, model={"path": str(folder)}))


def test_no_archive_is_unpacked():
    package = Path(models.__file__).parent
    for path in package.rglob("*.py"):
        assert not re.search(r"\b(tarfile|zipfile|unpack_archive)\b", path.read_text(encoding="utf-8")), path


# Tokens of the Hub


def test_a_token_in_a_recipe_or_an_override_is_a_fault(tmp_path):
    for source, overrides in (
        (broken.classify(tmp_path, model={"path": f"https://user:{TOKEN}@host/x"}), []),
        (broken.classify(tmp_path), [f"model.revision={TOKEN}"]),
    ):
        with pytest.raises(Faults) as caught:
            recipe.from_dict(source, overrides)
        assert "token of the Hub" in str(caught.value)
        assert TOKEN not in str(caught.value)


def test_a_token_does_not_reach_the_run_folder(tmp_path, monkeypatch, capfd):
    words = ["pretrain", "it's a recipe.yaml", "model.config={hidden_dropout_prob: 0.2}", "--allow"]
    monkeypatch.setattr(sys, "argv", ["hftune", *words, TOKEN])
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-form")
    source = tiny.mlm(tmp_path, max_steps=1)
    children.train(source)
    Reporter().say(f"{TOKEN} a-token-of-another-form")
    said = "".join(capfd.readouterr())
    for text in [said, *(p.read_text(errors="replace") for p in (tmp_path / "run").rglob("*") if p.is_file())]:
        assert TOKEN not in text
        assert "a-token-of-another-form" not in text
    told = json.loads((tmp_path / "run" / "run.json").read_text())["command"]
    assert shlex.split(told) == ["hftune", *words, "hf_…"], "a shell takes it as it was given"


def test_a_fault_never_tells_a_token():
    fault = UserError(f"cannot load https://user:{TOKEN}@host", hint=TOKEN, where=TOKEN)
    assert TOKEN not in str(fault) + fault.message + fault.hint + fault.where
    assert without_tokens("hf_hub and hf_datasets") == "hf_hub and hf_datasets"


# Text of unknown origin


def test_faults_and_reports_obey_no_control_sequence(capsys):
    fault = UserError(ESCAPES, hint=ESCAPES, where=ESCAPES)
    Reporter().say(ESCAPES)
    Reporter().warn(ESCAPES)
    Reporter().table(ESCAPES, [(ESCAPES, ESCAPES)])
    said = str(fault) + "".join(capsys.readouterr())
    assert not set("\x1b\x07\u202e\r") & set(said)


@pytest.mark.parametrize(
    "text", ["[bold]a[/bold] [link=http://x]b[/link]", "[/]", r"a \[ b", "a\\", r"\[bold] :smile:"]
)
def test_no_text_is_markup(text, capsys):
    Reporter().say(text)
    Reporter().warn(text)
    Reporter().table(text, [(text, text)], [text, "b"])
    assert capsys.readouterr().out.count(text) == 6


def test_names_from_data_are_no_markup_on_the_card(tmp_path):
    run = tmp_path / "run <img src=x onerror=alert(1)>"
    run.mkdir()
    label = "f1[<script>|`x`|](javascript:alert(1))"
    (run / "metrics.json").write_text(json.dumps({label: {"value": 0.5, "count": 3}}))
    (run / "run.json").write_text("{}")
    source = broken.classify(tmp_path, task={"label_names": ["a\n```\n<script>", "b"]})
    (run / "recipe.yaml").write_text(recipe.dump(recipe.from_dict(source)))
    card.write(run, recipe.from_dict(source), "bert")
    text = (run / "README.md").read_text()
    head, body = text.split("\n---\n", 1)
    before, fence, after = body.partition("```yaml\n")
    assert fence
    assert not re.search(r"(?<!\\)<|(?<!\\)\[(?!\^)", before.replace("<!-- written by hftune", ""))
    assert not [line for line in after.splitlines()[:-1] if re.match(r" {0,3}```", line)]
    assert "onerror" in head  # a name in quotes, for a reader of YAML
    row = next(line for line in before.splitlines() if "0.5000" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    assert markdown("a *b* <i>\n# c") == r"a \*b\* &lt;i&gt; \# c"
    assert clean("\x1b[0m") == r"\x1b[0m"


def test_a_fault_on_the_command_line_is_clean(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_text(broken.yaml(tmp_path, str(broken.MADE["bert"]), '"./\\e[31m"'))
    monkeypatch.setattr(sys, "argv", ["hftune", "check", str(tmp_path / "recipe.yaml")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "\x1b" not in "".join(capsys.readouterr())


# Nothing is sent


def test_only_a_hub_id_reaches_for_the_network(tmp_path, monkeypatch):
    from hftune import hub

    monkeypatch.setattr(hub, "answers", lambda: pytest.fail("the Hub was asked"))
    checking.check(recipe.from_dict(broken.classify(tmp_path)))


def test_what_a_fault_says_is_what_its_parts_say():
    fault = errors.UserError("m", hint="h", where="w")
    assert str(fault) == "w: m\n  hint: h"
