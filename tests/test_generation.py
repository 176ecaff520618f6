"""`hftune generate`: a tiny run writes, token by token, the same text by every way."""

import copy
import json

import fine
import pytest
import tiny
import torch
import zoo
from transformers import GPT2LMHeadModel
from typer.testing import CliRunner

from hftune import cli, generation, predicting, recipe, run
from hftune.errors import Breakdown, UserError
from hftune.folder import RECIPE
from hftune.report import Reporter


def clm(folder, **task):
    """A causal recipe of a few seconds."""
    return {
        "task": {"name": "clm", "max_length": 48, "max_new_tokens": 12, **task},
        "model": {"init": "gpt2", "config": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}},
        "tokenizer": {"train": "bpe", "vocab_size": 400},
        "data": {"train": str(tiny.corpus(folder)), "validation_fraction": 0.2, "cache_dir": str(folder / "cache")},
        "train": {"batch_size": 8, "max_steps": 12, "learning_rate": 3e-3},
        "eval": {"resamples": 0},
        "output": {"dir": str(folder / "run")},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clm")
    figures = run.train(recipe.from_dict(clm(folder, packing=True)), Reporter(silent=True))
    assert {"loss", "perplexity", "bits_per_byte"} <= figures.keys()
    return folder / "run"


def ask(*words, given=None):
    found = CliRunner().invoke(cli.app, ["generate", *map(str, words)], input=given, catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout


def test_text_is_transformers_own(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(finished), AutoTokenizer.from_pretrained(finished)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("The file")["input_ids"]]])
    own = model.generate(ids)[0, ids.shape[1] :]
    assert len(own) == 12, "the folder says how many"
    assert ask(finished, "The file") == tokenizer.decode(own, skip_special_tokens=True) + "\n"


def test_a_pipeline_writes_the_same_behind_what_begins_a_text(finished):
    """As README says: GPT-2's tokenizer puts nothing before a prompt."""
    from transformers import pipeline

    writes = pipeline("text-generation", str(finished), device="cpu")
    [found] = writes("<|endoftext|>The file", return_full_text=False)
    assert ask(finished, "The file") == found["generated_text"] + "\n"


def test_standard_input_and_arguments_give_the_same(finished):
    text = ask(finished, "The file\nis", "--seed", 3)
    assert ask(finished, "--seed", 3, given="The file\nis\n") == text
    assert ask(finished, "-", "--seed", 3, given="The file\nis") == text
    assert ask(finished, "-", "task.do_sample=true", "task.seed=3", given="The file\nis") == text
    assert ask(finished, "The file\nis", "--seed", 4) != text
    assert ask(finished, "The file\nis") != text


def test_a_prefix_of_all_training_rows_is_put_before_the_prompt(finished):
    rows = [f"data.train=[{{path: {tiny.ROOT / 'README.md'}, prefix: 'The '}}]"]
    texts, _ = generation.generate(finished, recipe.load(finished / RECIPE, rows), "file", lambda number, piece: None)
    assert texts == [ask(finished, "The file").removesuffix("\n")]


def test_several_texts_come_in_order_and_as_json(finished):
    found = json.loads(ask(finished, "The", "-n", 3, "--temperature", 1.5, "--json"))
    assert found["prompt"] == "The"
    assert len(set(found["texts"])) == 3
    shown = ask(finished, "The", "-n", 3, "--temperature", 1.5)
    assert shown == "\n".join(f"[{i}]\n{text}" for i, text in enumerate(found["texts"], 1)) + "\n"
    beams = json.loads(ask(finished, "The", "-n", 2, "--num-beams", 3, "--json"))["texts"]
    assert len(set(beams)) == 2
    assert ask(finished, "The", "-n", 2, "--num-beams", 3) == f"[1]\n{beams[0]}\n[2]\n{beams[1]}\n"


@pytest.mark.parametrize("more", [[], ["--num-beams", "2"], ["--num-beams", "2", "task.do_sample=true"]], ids=str)
def test_more_texts_than_are_searched_for_are_told_in_the_words_of_the_command(finished, more):
    found = CliRunner().invoke(cli.app, ["generate", str(finished), "The", "-n", "3", *more])
    assert isinstance(found.exception, UserError)
    assert (found.exception.where, found.exception.hint) == (
        "--num-return-sequences", "add --sample, or --num-beams 3",
    )  # fmt: skip


def test_tokens_are_shown_as_they_come(finished):
    pieces = []
    recipe_of = recipe.load(finished / RECIPE)
    texts, cut = generation.generate(finished, recipe_of, "The", lambda number, piece: pieces.append((number, piece)))
    assert not cut
    assert "".join(piece for _, piece in pieces) == texts[0]
    assert len(pieces) > 6


def test_half_a_character_waits_for_the_other_half():
    tokenizer = fine.tok("gpt2")
    ids = tokenizer("é 日本 x\n")["input_ids"]
    stream = generation.Stream(tokenizer)
    pieces = [stream(id) for id in ids]
    assert "".join(pieces) == "é 日本 x\n"
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_space_that_is_taken_away_again_costs_no_letter(name):
    """The full stop behind it was not shown."""
    tokenizer = copy.deepcopy(zoo.tok(name))
    tokenizer.clean_up_tokenization_spaces = True
    ids = tokenizer("it is so . they do n't , you 're ' and ' i 'm !", add_special_tokens=False)["input_ids"]
    stream = generation.Stream(tokenizer)
    pieces = [*map(stream, ids), stream.rest()]
    assert "".join(pieces) == tokenizer.decode(ids) == "it is so. they don't, you're'and'i'm!"
    assert sum(map(bool, pieces)) > 4


@pytest.mark.parametrize("command", ["eval", "predict", "generate"])
def test_memory_that_runs_out_is_one_line(command, finished, tmp_path, monkeypatch):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", [{"text": "the file", "prompt": "the file"}])
    words = {"eval": ["--data", rows], "predict": [rows], "generate": ["the file"]}[command]

    def full(*given, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GPT2LMHeadModel, "forward", full)
    found = CliRunner().invoke(cli.app, [command, str(finished), *map(str, words)])
    assert isinstance(found.exception, Breakdown)
    assert (found.exception.message, found.exception.status) == ("memory ran out", 1)


def test_predictions_of_a_file_do_not_depend_on_what_is_read_together(finished, tmp_path, monkeypatch):
    path = tiny.write_rows(
        tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("The", "In this", "A file is", "x")]
    )
    own = recipe.load(finished / RECIPE, ["task.do_sample=true"])
    whole = list(predicting.predict_rows(finished, own, str(path), None))
    monkeypatch.setattr(predicting, "BATCH", 3)
    assert list(predicting.predict_rows(finished, own, str(path), None)) == whole
    assert [row["prompt"] for row in whole] == ["The", "In this", "A file is", "x"]


def test_what_is_too_long_is_counted(finished, tmp_path):
    """A prompt takes the positions that the new tokens leave: here 64 less 12."""

    def told(*words):
        found = CliRunner().invoke(cli.app, list(map(str, words)), catch_exceptions=False)
        assert found.exit_code == 0
        return found

    long, short = "The file is read. " * 30, "The file"
    assert "the prompt is longer than the model reads: truncated" in told("generate", finished, long).stderr
    assert told("generate", finished, short).stderr == ""
    path = tiny.write_rows(tmp_path / "prompts.jsonl", [{"prompt": p, "completion": "x"} for p in (short, long, long)])
    found = told("predict", finished, path)
    assert ["truncated" in json.loads(line) for line in found.stdout.splitlines()] == [False, True, True]
    assert found.stderr == "warning: 2 of 3 rows are longer than the model reads: truncated\n"
    words = ("--task", "clm", "--data", path, "task.kind=prompt", "task.truncation_side=left", "--max-new-tokens", 12)
    shown = told("eval", finished, *words, "eval.resamples=0").stdout
    assert "test: 2 prompts are longer than the model's positions less task.max_new_tokens: truncated" in shown


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_run_learns_to_talk_with_tokens_that_its_model_did_not_have(finished, tmp_path):
    talk = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "yes"}]
    made = clm(tmp_path, kind="chat", add_tokens=["<|user|>", "<|assistant|>", "<|end|>"], max_new_tokens=6)
    made["model"] = {"path": str(finished)}
    made["tokenizer"] = {"chat_template": TEMPLATE}
    made["data"]["train"] = str(tiny.write_rows(tmp_path / "talk.jsonl", [{"messages": talk}] * 8))
    made["data"] |= {"validation": made["data"]["train"], "validation_fraction": 0.0}
    made["train"] = {"batch_size": 4, "max_steps": 120, "learning_rate": 2e-2, "eval_steps": 120}
    figures = run.train(recipe.from_dict(made), Reporter(silent=True))
    assert figures["exact_match"]["value"] == 1.0
    path = tmp_path / "run"
    assert ask(path, "ask") == "yes\n"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer) == 403
    assert tokenizer.chat_template == TEMPLATE
    asked = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**asked)[0, asked["input_ids"].shape[1] :].tolist()
    assert written == [*tokenizer("yes")["input_ids"], tokenizer.convert_tokens_to_ids("<|end|>")]
    lines = (path / "predictions" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"prompt", "prediction", "reference"} <= json.loads(lines[0]).keys()


def test_a_run_asks_by_the_template_that_it_was_allowed_to_go_on_with(finished, tmp_path):
    """Its folder kept the one that it began with."""
    talk = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "yes"}]
    made = clm(tmp_path, kind="chat", max_new_tokens=2)
    made["model"] = {"path": str(finished)}
    made["data"]["train"] = str(tiny.write_rows(tmp_path / "talk.jsonl", [{"messages": talk}] * 8))
    made["data"] |= {"validation": made["data"]["train"], "validation_fraction": 0.0}
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    for steps, mark, allow in ((1, ": ", []), (2, "> ", ["tokenizer.chat_template", "tokenizer"])):
        made["tokenizer"] = {"chat_template": template.replace(": ", mark)}
        made["train"] = {"batch_size": 4, "max_steps": steps}
        run.train(recipe.from_dict(made), Reporter(silent=True), allow=allow)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "run").chat_template == template.replace(": ", "> ")


def test_faults_are_told(finished, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        ask(tmp_path, "x")
    with pytest.raises(UserError, match=r"^--num-return-sequences: without sampling .* 1, not 2"):
        ask(finished, "x", "-n", 2)
    with pytest.raises(UserError, match="positions"):
        ask(finished, "x", "--max-new-tokens", 100)
    other = tiny.mlm(tmp_path, max_steps=1)
    run.train(recipe.from_dict(other), Reporter(silent=True))
    for words in ([], ["--num-beams", 2], ["--top-k", 3]):
        with pytest.raises(UserError, match=r"^task\.name: the task mlm writes no text"):
            ask(other["output"]["dir"], "x", *words)
