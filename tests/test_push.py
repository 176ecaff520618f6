"""hftune push: what is uploaded and what never is, with a Hub that only writes down what it is asked."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from hftune import hub
from hftune.errors import UserError
from hftune.push import push

SHARED = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "recipe.yaml", "metrics.json"}
SHARED |= {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "vocab.txt", "merges.txt", "source.spm"}
SHARED |= {"chat_template.jinja", "generation_config.json", "adapter_model.safetensors", "modeling_own.py", "LICENSE"}
OWN = {
    "checkpoints/step-3/model.safetensors",
    "predictions/test.jsonl",
    "news/predictions/test.jsonl",
    "news/report.html",
    "rejects/train.jsonl",
    "report.html",
    "log.jsonl",
    "run.json",
    ".lock",
    "mine.jsonl",
    "mine.jsonl.part",
    "rows.csv",
    "cache/0a/part-00000.arrow",
    "news/notes.txt",
    "news/metrics.json",
    "news/recipe.yaml",
    "merged/config.json",
    "merged/model.safetensors",
    "merged/tokenizer.json",
}


@pytest.fixture
def run(tmp_path):
    for name in (*SHARED, *OWN, "generator/config.json", "generator/.x"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    return tmp_path / "run"


@pytest.fixture
def asked(monkeypatch):
    """The calls that a Hub which agrees to everything received."""
    calls = []

    def upload(self, **more):
        calls.append(more)
        return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(hub, "answers", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, **more: calls.append((name, more)))
    monkeypatch.setattr(
        huggingface_hub.HfApi, "repo_info", lambda *_, **__: SimpleNamespace(private=calls[0][1]["private"])
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    return calls


def test_the_model_goes_and_the_data_stays(run, asked):
    assert push(run, "me/model") == "https://hub/commit"
    (name, made), sent = asked
    assert (name, made["private"]) == ("me/model", True)
    files = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
    patterns = {name: sent[name] for name in ("allow_patterns", "ignore_patterns")}
    kept = set(filter_repo_objects(files, **patterns))
    assert kept == SHARED | {"generator/config.json"}


def test_public_only_when_asked(run, asked):
    push(run, "me/model", public=True)
    assert asked[0][1]["private"] is False


@pytest.mark.parametrize("public", [True, False])
def test_nothing_goes_where_others_see_it_than_was_asked_for(run, asked, monkeypatch, public):
    """A repository that is there already keeps its visibility, whatever is said when it is to be made."""
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: SimpleNamespace(private=public))
    is_there, mend = ("private", "without") if public else ("public", "with")
    with pytest.raises(
        UserError, match=rf"me/model is there already, and {is_there}: nothing was sent\n.* {mend} --public"
    ):
        push(run, "me/model", public=public)
    assert len(asked) == 1, "what makes one"


def test_a_run_that_is_the_working_folder_has_a_name(run, asked, monkeypatch):
    monkeypatch.chdir(run)
    push(Path("."), "me/model")
    assert asked[1]["commit_message"] == "run, trained by hftune"


def test_an_adapter_goes_only_where_others_find_its_base(run, asked):
    (run / "config.json").unlink()
    (run / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/me/base"}')
    with pytest.raises(
        UserError, match=r"nobody else has\n  hint: hftune merge .*, then hf upload me/model .*/merged "
    ):
        push(run, "me/model")
    (run / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    assert push(run, "me/model") == "https://hub/commit"


def test_what_cannot_be_pushed_is_one_line(run, asked, monkeypatch):
    with pytest.raises(UserError, match="no name on the Hub"):
        push(run, "model")
    (run / "config.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        push(run, "me/model")
    (run / "config.json").write_text("{}")

    class Cut(Exception):
        """As the client's transport raises for a connection that is cut: none of the operating system's."""

    for kind in (OSError, Cut):

        def refuse(*_, kind=kind, **__):
            raise kind("403 Forbidden\nlong story")

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
        with pytest.raises(UserError, match=r"403 Forbidden\n  hint"):
            push(run, "me/model")
    monkeypatch.setattr(hub, "answers", lambda: False)
    with pytest.raises(UserError, match="cannot be reached"):
        push(run, "me/model")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no token"):
        push(run, "me/model")
