"""Text to text: language codes, prefixes, references as they were given, and decoder-only models."""

import json

import fine
import numpy as np
import pytest
import tiny
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from hftune import heads, predicting, recipe, run, sequences
from hftune.errors import UserError
from hftune.models import prepare_tokenizer
from hftune.report import Reporter
from hftune.task import IGNORE
from hftune.tasks import summarize, translate

TEXTS = [row["text"][:1200] for row in tiny.lines("docs-text", limit=20)]
PAIR = {"source": "so it is .", "target": "it is so , and not else ."}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def trained(model, trainer):
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(TEXTS, trainer)
    return made


def nllb():
    made = trained(models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL))
    merges = [tuple(pair) for pair in json.loads(made.to_str())["model"]["merges"]]
    return transformers.NllbTokenizer(vocab=made.get_vocab(), merges=merges)


def mbart():
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>")
    made = trained(models.Unigram(), trainer)
    pieces = json.loads(made.to_str())["model"]["vocab"]
    return transformers.MBartTokenizer(vocab=[tuple(pair) for pair in pieces])


MANY = {"m2m_100": (nllb, "eng_Latn", "deu_Latn"), "mbart": (mbart, "en_XX", "de_DE")}


@pytest.fixture(scope="module", params=MANY)
def many(request):
    make, source, target = MANY[request.param]
    return request.param, prepare_tokenizer(make(), request.param), source, target


def tiny_model(name, tok):
    config = transformers.AutoConfig.for_model(
        name, vocab_size=len(tok), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id, decoder_start_token_id=tok.eos_token_id, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModelForSeq2SeqLM.from_config(config).eval()


def test_a_translation_begins_with_its_language(many):
    name, tok, source, target = many
    options = translate.TranslateOptions(source_lang=source, target_lang=target, max_new_tokens=5)
    made = translate.TASK.encode(fine.rows([PAIR, PAIR]), tok, options)
    code = tok.convert_tokens_to_ids
    labels, ids = (np.asarray(made[key][0]).tolist() for key in ("labels", "input_ids"))
    assert code(source) in ids
    assert code(target) in labels
    assert code(source) not in labels
    assert tok.decode(labels, skip_special_tokens=True).strip() == PAIR["target"]
    assert labels[-1] == tok.eos_token_id or labels[-2] == tok.eos_token_id
    model = tiny_model(name, tok)
    seen = []
    generate = model.generate
    model.generate = lambda *args, **given: seen.append(given["generation_config"]) or generate(*args, **given)
    columns = {key: column for key, column in made.items() if not isinstance(column, int)}
    raw = [{key: column[i] for key, column in columns.items()} for i in range(2)]
    batch = {k: torch.as_tensor(v) for k, v in sequences.collate(raw, tok, options, None).items()}
    with torch.no_grad():
        [answer, again] = translate.TASK.predict(model, batch, raw, tok, options)
    begins = [id for id in (seen[0].decoder_start_token_id, seen[0].forced_bos_token_id) if id is not None]
    assert begins == heads.decoder_inputs(model, batch["labels"])[0, : len(begins)].tolist(), "as in training"
    assert begins[-1] == code(target)
    assert answer["reference"] == again["reference"] == PAIR["target"]


@pytest.mark.parametrize("name", MANY)
def test_transformers_writes_in_the_language_of_a_run(name, tmp_path):
    """Languages that are not the tokenizer's defaults lie in the folder: those of its inputs and of what is written."""
    make, target, source = MANY[name]
    tok = make()
    tok.save_pretrained(tmp_path / "base")
    tiny_model(name, tok).save_pretrained(tmp_path / "base")
    rows = tiny.write_rows(tmp_path / "pairs.jsonl", [PAIR, {"source": "not else", "target": "so it is"}] * 4)
    made = {
        "task": {"name": "translate", "source_lang": source, "target_lang": target, "max_length": 32,
                 "max_target_length": 32, "max_new_tokens": 8},
        "model": {"path": str(tmp_path / "base")},
        "data": {"train": str(rows), "cache_dir": str(tmp_path / "cache")},
        "train": {"batch_size": 4, "max_steps": 60, "learning_rate": 3e-2},
        "output": {"dir": str(tmp_path / "run")},
    }  # fmt: skip
    run.train(recipe.from_dict(made), Reporter(silent=True))
    found = predicting.predict_rows(tmp_path / "run", recipe.load(tmp_path / "run" / "recipe.yaml"), str(rows), 2)
    texts = [row["prediction"] for row in found]
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run").eval()
    inputs = tok([PAIR["source"], "not else"], padding=True, return_tensors="pt")
    assert (inputs["input_ids"] == tok.convert_tokens_to_ids(source)).any(1).all()
    written = model.generate(**inputs)
    assert (written == tok.convert_tokens_to_ids(target)).any(1).all()
    assert tok.batch_decode(written, skip_special_tokens=True) == texts
    assert all(texts)


def test_languages_must_be_named_and_known(many):
    _, tok, source, target = many
    with pytest.raises(UserError, match="many languages, and none is named"):
        translate.TASK.encode(fine.rows([PAIR]), tok, translate.TranslateOptions())
    wrong = translate.TranslateOptions(source_lang=source, target_lang=target[:-1])
    with pytest.raises(UserError, match=f"no language '{target[:-1]}'") as fault:
        translate.TASK.encode(fine.rows([PAIR]), tok, wrong)
    assert fault.value.where == "task.target_lang"
    assert target in fault.value.hint


def test_a_tokenizer_of_one_language_takes_no_code():
    with pytest.raises(UserError, match="no language 'de'") as fault:
        translate.TASK.encode(fine.rows([PAIR]), fine.tok("t5"), translate.TranslateOptions(target_lang="de"))
    assert fault.value.hint.startswith("leave task.target_lang out")


@pytest.mark.parametrize("form", ["encoder-decoder", "decoder-only"])
def test_references_are_raw_and_prefixes_stand_before_the_input(form):
    tok = fine.tok("t5" if form == "encoder-decoder" else "gpt2")
    long = "  so it\tis , " * 40 + "\n"
    options = summarize.SummarizeOptions(form=form, prefix="sum: ", max_length=16, max_target_length=8)
    columns = summarize.TASK.columns(options)
    row = dict(zip(columns, ("a text", long), strict=True))
    made = summarize.TASK.under(options).encode(fine.rows([row]), tok, options)
    assert made["reference"] == [long]
    ids = np.asarray(made["input_ids"][0])
    assert "sum: a text" in tok.decode(ids).replace("  ", " ")
    if form == "encoder-decoder":
        assert len(made["labels"][0]) <= 8
    else:
        assert len(ids) <= 16 + 8


def test_a_decoder_only_model_learns_the_target_alone():
    tok = fine.tok("gpt2")
    options = translate.TranslateOptions(form="decoder-only", separator=" => ")
    made = translate.TASK.under(options).encode(fine.rows([PAIR]), tok, options)
    raw = [{key: column[0] for key, column in made.items() if not isinstance(column, int)}]
    labels = sequences.collate(raw, tok, options, None)["labels"][0]
    learned = labels[labels != IGNORE]
    assert tok.decode(learned[:-1]) == PAIR["target"]
    assert learned[-1] == tok.eos_token_id
    assert made["prompt"] == [PAIR["source"] + " => "]


@pytest.mark.parametrize(("kind", "form"), [("t5", "encoder-decoder"), ("gpt2", "decoder-only")])
def test_that_a_text_is_empty_is_learned_whatever_the_form(kind, form):
    task = translate.TASK.under(options := translate.TranslateOptions(form=form))
    data = fine.encoded(task, kind, options, [{"source": source, "target": ""} for source in ("the", "file")])
    labels = fine.batch(data, [0, 1])["labels"]
    assert labels[labels != IGNORE].tolist() == [data.tokenizer.eos_token_id] * 2


WORDS = st.sampled_from(["the", " file", "\n", "é", " 日本", "naïve", "👩‍💻", "0", " x", "ing", ".", "  "])
SEPARATORS = st.sampled_from(["", "\n", " => ", "\nTL;DR: "])


@given(st.lists(WORDS, max_size=60).map("".join), SEPARATORS, st.integers(12, 40))
def test_a_prompt_that_is_cut_ends_in_the_whole_separator(text, separator, most):
    tok = fine.tok("gpt2")
    options = translate.TranslateOptions(form="decoder-only", separator=separator, max_length=most)
    row = {"source": text, "target": "x"}
    [prompt] = translate.TASK.under(options).encode(fine.rows([row]), tok, options)["prompt"]
    assert prompt.endswith(separator)
    assert text.startswith(prompt.removesuffix(separator))
    long = len(tok(text + separator)["input_ids"]) > most
    assert len(tok(prompt)["input_ids"]) <= most
    assert (prompt != text + separator) == long


def test_a_separator_that_leaves_no_room_is_refused():
    options = translate.TranslateOptions(form="decoder-only", separator="\nTL;DR: ", max_length=4)
    with pytest.raises(UserError, match="no room is left") as fault:
        translate.TASK.under(options).encode(fine.rows([PAIR]), fine.tok("gpt2"), options)
    assert fault.value.where == "task.separator"
