"""Generation: transformers' own tokens, whatever the batch; draws of a row that follow from the row alone."""

import functools

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from hftune import causal, decode
from hftune.decode import Decoding
from hftune.errors import UserError

VOCABULARY = 61


class Tokenizer:
    pad_token_id = 0
    eos_token_id = 2
    bos_token_id = cls_token_id = sep_token_id = None

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(map(str, ids))


def model(name):
    """A model whose random weights are so large, and so chosen, that what it generates follows from its input."""
    torch.manual_seed({"t5": 4, "bart": 1, "marian": 1}.get(name, 3))
    common = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    seq2seq = {**common, "decoder_start_token_id": 0, "tie_word_embeddings": False}
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    d_model = {
        "d_model": 32, "max_position_embeddings": 64, "init_std": 0.2,
        "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
        "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64,
    }  # fmt: skip
    config = {
        "gpt2": lambda: transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5, **common
        ),
        "llama": lambda: transformers.LlamaConfig(initializer_range=0.5, max_position_embeddings=64, **small, **common),
        "mistral": lambda: transformers.MistralConfig(
            initializer_range=0.5,
            num_key_value_heads=1,
            sliding_window=6,
            max_position_embeddings=64,
            **small,
            **common,
        ),
        "mamba": lambda: transformers.MambaConfig(
            hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.5, **common
        ),
        "recurrent_gemma": lambda: transformers.RecurrentGemmaConfig(
            block_types=["recurrent", "attention"],
            lru_width=32,
            attention_window_size=16,
            initializer_range=0.5,
            w_init_variance_scale=4.0,
            **small,
            **common,
        ),
        "t5": lambda: transformers.T5Config(
            d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, initializer_factor=4.0, **seq2seq
        ),
        "bart": lambda: transformers.BartConfig(
            **d_model, **{**seq2seq, "decoder_start_token_id": 2}, forced_bos_token_id=1, forced_eos_token_id=2
        ),
        "marian": lambda: transformers.MarianConfig(**d_model, **seq2seq, forced_eos_token_id=2),
    }[name]()
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    return kind.from_config(config).eval()


def batch(made, rows=9, seed=0):
    """Ragged rows, padded on the left for decoder-only models."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 12, rows)
    ids, mask = np.zeros((rows, 12), np.int64), np.zeros((rows, 12), np.int64)
    for i, length in enumerate(lengths):
        place = slice(0, length) if made.config.is_encoder_decoder else slice(12 - length, 12)
        ids[i, place], mask[i, place] = rng.integers(20, VOCABULARY, length), 1
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def row_of(inputs, row):
    """One row alone, without its padding."""
    kept = inputs["attention_mask"][row].bool()
    return {name: value[row : row + 1][:, kept] for name, value in inputs.items()}


def reference(made, inputs, ends, **settings):
    """What transformers' own loop gives, cut at the end of the text."""
    prompt = 1 if made.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    out = made.generate(**inputs, pad_token_id=0, eos_token_id=ends or [2], **settings)[:, prompt:].tolist()
    return [[id for at, id in enumerate(row) if not any(i in ends for i in row[: at + 1])] for row in out]


def end_of(made, inputs, **settings):
    """An id such that, if it ends a text, the rows end at as many different times as can be."""
    endless = reference(made, inputs, [], **settings)
    when = {id: len({row.index(id) if id in row else len(row) for row in endless}) for row in endless for id in row}
    return [max(sorted(when), key=lambda id: when[id])]


def calls(made, monkeypatch):
    """The number of texts in each call of a model, as they come."""
    sizes, forward = [], made.forward

    @functools.wraps(forward)  # what a model takes is read from its signature
    def counted(**inputs):
        given = inputs["decoder_input_ids"] if made.config.is_encoder_decoder else inputs["input_ids"]
        sizes.append(len(given))
        return forward(**inputs)

    monkeypatch.setattr(made, "forward", counted)
    return sizes


ENDS = [2, 5, 7]
ALL = ["gpt2", "llama", "mistral", "t5", "bart", "marian"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "more", [{}, {"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 2}], ids=["plain", "penalty", "ngrams"]
)
def test_greedy_is_transformers_own(name, more):
    made = model(name)
    inputs = batch(made)
    ends = end_of(made, inputs, max_new_tokens=24, do_sample=False, **more)
    found = decode.generate(made, inputs, Tokenizer(), Decoding(max_new_tokens=24, **more), eos_token_id=ends)
    assert [texts[0] for texts in found] == reference(made, inputs, ends, max_new_tokens=24, do_sample=False, **more)
    assert len({tuple(texts[0]) for texts in found}) > 4, "the rows must differ, or nothing is shown"
    assert len({len(texts[0]) for texts in found}) > 2, "rows must end at different times"


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart"])
def test_rows_are_dropped_as_they_finish(name, monkeypatch):
    made = model(name)
    ends = end_of(made, batch(made), max_new_tokens=24, do_sample=False)
    sizes = calls(made, monkeypatch)
    texts = decode.generate(made, batch(made), Tokenizer(), Decoding(max_new_tokens=24), eos_token_id=ends)
    assert sizes[0] == 9
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 9
    assert len(sizes) == min(24, max(len(t[0]) for t in texts) + 1)


BEAMS = {
    "first ends": {"num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True},
    "by length": {"length_penalty": 2.0},
    "never": {"length_penalty": 1.5, "early_stopping": "never", "num_return_sequences": 3},
    "penalty": {"repetition_penalty": 1.3, "length_penalty": 0.0},
    "ngrams": {"no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("name", [*ALL, "mamba"])
@pytest.mark.parametrize("how", BEAMS)
def test_beams_are_transformers_own(name, how, monkeypatch):
    made = model(name)
    inputs, settings = batch(made), {"max_new_tokens": 24, "num_beams": 3, **BEAMS[how]}
    ends = end_of(made, inputs, max_new_tokens=24, do_sample=False)
    wanted = reference(made, inputs, ends, **settings)
    sizes = calls(made, monkeypatch)
    found = decode.generate(made, inputs, Tokenizer(), Decoding(**settings), eos_token_id=ends)
    assert [ids for texts in found for ids in texts] == wanted
    assert len({tuple(ids) for ids in wanted}) >= 4, "the rows must differ, or nothing is shown"
    assert sizes[0] == 9, "a prompt is read once for all its beams"
    assert sizes[1:] == sorted(sizes[1:], reverse=True)


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_rows_leave_when_their_beams_have_ended(name, monkeypatch):
    made = model(name)
    inputs, settings = batch(made), {"max_new_tokens": 24, "num_beams": 3, "early_stopping": True}
    ends = end_of(made, inputs, max_new_tokens=24, do_sample=False)
    sizes = calls(made, monkeypatch)
    decode.generate(made, inputs, Tokenizer(), Decoding(**settings), eos_token_id=ends)
    assert sizes[1] == 27
    assert sizes[-1] < 27


def test_processors_that_know_rows_by_their_place_keep_them_there(monkeypatch):
    """encoder_no_repeat_ngram_size forbids what a row's own prompt says: it finds the prompt by the row's place."""
    made = model("bart")
    inputs, own = batch(made), {"encoder_no_repeat_ngram_size": 1}
    ends = end_of(made, inputs, max_new_tokens=24, do_sample=False, **own)
    for beams in (1, 3):
        settings = {"max_new_tokens": 24, "num_beams": beams}
        wanted = reference(made, inputs, ends, **settings, **own)
        sizes = calls(made, monkeypatch)
        found = decode.generate(made, inputs, Tokenizer(), Decoding(**settings), eos_token_id=ends, **own)
        assert [texts[0] for texts in found] == wanted
        assert sizes[-1] == 9 * beams
        assert len({len(texts[0]) for texts in found}) > 2
        monkeypatch.undo()


def test_more_beams_than_tokens_of_a_vocabulary():
    made = model("llama")
    inputs, settings = batch(made, rows=3), {"max_new_tokens": 5, "num_beams": VOCABULARY + 3}
    found = decode.generate(made, inputs, Tokenizer(), Decoding(**settings), eos_token_id=ENDS)
    assert [texts[0] for texts in found] == reference(made, inputs, ENDS, **settings)


def test_a_model_whose_memory_cannot_be_moved_writes_one_text(monkeypatch):
    made = transformers.RwkvForCausalLM(
        transformers.RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    ).eval()
    inputs = {"input_ids": torch.randint(20, VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(0))}
    first = decode.generate(made, inputs, Tokenizer(), Decoding(max_new_tokens=8), eos_token_id=[])
    ends = [first[0][0][1], first[1][0][2]]  # rows end early, and stay: there is nothing to take them out of
    found = decode.generate(made, inputs, Tokenizer(), Decoding(max_new_tokens=8), eos_token_id=ends)
    assert [texts[0] for texts in found] == [decode_cut(texts[0], ends) for texts in first]
    with pytest.raises(UserError, match="rwkv cannot write several texts"):
        decode.generate(made, inputs, Tokenizer(), Decoding(max_new_tokens=8, num_beams=2))


def decode_cut(ids, ends):
    """A text up to its end."""
    return ids[: next((at for at, id in enumerate(ids) if id in ends), len(ids))]


SAMPLING = {"max_new_tokens": 16, "do_sample": True, "num_return_sequences": 2, "seed": 5, "temperature": 6.0}


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "marian"])
@pytest.mark.parametrize("more", [{}, {"top_k": 20, "top_p": 0.95, "min_p": 0.01}, {"repetition_penalty": 1.5}])
def test_a_row_is_sampled_alike_in_any_batch(name, more):
    made = model(name)
    inputs = batch(made, rows=5)
    decoding = Decoding(**SAMPLING, **more)
    together = decode.generate(made, inputs, Tokenizer(), decoding, rows=range(100, 105), eos_token_id=ENDS)
    for row in range(5):
        alone = decode.generate(made, row_of(inputs, row), Tokenizer(), decoding, rows=[100 + row], eos_token_id=ENDS)
        assert alone[0] == together[row]
    again = decode.generate(
        made, inputs, Tokenizer(), decoding.model_copy(update={"seed": 6}), rows=range(100, 105), eos_token_id=ENDS
    )
    assert again != together
    assert sum(texts[0] != texts[1] for texts in together) >= 3, "the texts of a row must have draws of their own"


def test_texts_that_end_at_once_leave_the_others_to_their_rows():
    """Half of the texts of a batch left at the first token: as many texts go on as there were prompts."""
    made, halves = model("t5"), 0
    inputs, ends = batch(made, rows=2), list(range(2, VOCABULARY, 2))
    for seed in range(20):
        decoding = Decoding(**{**SAMPLING, "seed": seed})
        together = decode.generate(made, inputs, Tokenizer(), decoding, eos_token_id=ends)
        for row in range(2):
            alone = decode.generate(made, row_of(inputs, row), Tokenizer(), decoding, rows=[row], eos_token_id=ends)
            assert alone[0] == together[row]
        halves += sum(not ids for texts in together for ids in texts) == 2
    assert halves > 2


def test_greedy_rows_do_not_depend_on_their_batch():
    for name in ("gpt2", "llama", "bart"):
        made = model(name)
        inputs = batch(made)
        found = decode.generate(made, inputs, Tokenizer(), Decoding(max_new_tokens=16), eos_token_id=ENDS)
        for row in range(9):
            assert (
                decode.generate(made, row_of(inputs, row), Tokenizer(), Decoding(max_new_tokens=16), eos_token_id=ENDS)[
                    0
                ]
                == found[row]
            )


def test_draws_follow_the_distribution():
    """One step from the same prompt, many rows: frequencies against the model's own probabilities."""
    made = model("gpt2")
    prompt = torch.tensor([[21, 34, 40]])
    with torch.no_grad():
        wanted = (made(prompt).logits[0, -1] / 2).softmax(-1).numpy()
    number = 4000
    inputs = {"input_ids": prompt.repeat(number, 1), "attention_mask": torch.ones(number, 3, dtype=torch.int64)}
    decoding = Decoding(max_new_tokens=1, do_sample=True, temperature=2.0)
    drawn = decode.generate(made, inputs, Tokenizer(), decoding, eos_token_id=[])
    counts = np.bincount([texts[0][0] for texts in drawn], minlength=VOCABULARY)
    assert np.abs(counts / number - wanted).max() < 4 * np.sqrt(0.25 / number)
    only = decode.generate(
        made, inputs, Tokenizer(), Decoding(max_new_tokens=1, do_sample=True, top_k=3), eos_token_id=[]
    )
    assert {texts[0][0] for texts in only} <= set(np.argsort(-wanted)[:3].tolist())


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_streaming_shows_each_token_of_one_text_after_the_other(name):
    made = model(name)
    inputs = batch(made, rows=1)
    seen = []
    found = decode.generate(
        made,
        inputs,
        Tokenizer(),
        Decoding(**SAMPLING),
        watch=lambda row, text, id: seen.append((row, text, id)),
        eos_token_id=ENDS,
    )
    assert found == decode.generate(made, inputs, Tokenizer(), Decoding(**SAMPLING), eos_token_id=ENDS)
    assert seen == [(0, text, id) for text in range(2) for id in found[0][text]]


@pytest.mark.parametrize("how", [{"num_beams": 3, "length_penalty": 2.0}, {"no_repeat_ngram_size": 2}], ids=str)
@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_a_saved_model_carries_how_it_writes(name, how, tmp_path):
    made, decoding = model(name), Decoding(max_new_tokens=9, **how)
    inputs = batch(made)
    texts = [found for (found,) in decode.generate(made, inputs, Tokenizer(), decoding)]
    made.generation_config = decode.settings_of(made, Tokenizer(), decoding)
    made.save_pretrained(tmp_path)
    again = type(made).from_pretrained(tmp_path).eval()
    assert reference(again, inputs, [2]) == texts
    assert max(map(len, texts)) == 9


def test_answers_are_text():
    made = model("gpt2")
    found = decode.answers(made, batch(made, rows=3), Tokenizer(), Decoding(**SAMPLING), eos_token_id=ENDS)
    assert all(answer["prediction"] == answer["predictions"][0] and len(answer["predictions"]) == 2 for answer in found)
    assert all(
        set(answer) == {"prediction"}
        for answer in decode.answers(made, batch(made, rows=3), Tokenizer(), Decoding(max_new_tokens=3))
    )


def test_more_tokens_than_positions_are_refused():
    for name in ("gpt2", "marian"):
        made = model(name)
        with pytest.raises(UserError, match="64 positions") as fault:
            decode.generate(made, batch(made), Tokenizer(), Decoding(max_new_tokens=65))
        assert fault.value.where == "task.max_new_tokens"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"temperature": 0.5}, "do_sample"),
        ({"length_penalty": 2.0}, "num_beams"),
        ({"num_beams": 2, "do_sample": True}, "only with do_sample: false"),
        ({"num_return_sequences": 2}, "do_sample"),
        ({"num_return_sequences": 3, "num_beams": 2}, "num_beams"),
        ({"temperature": 0.0, "do_sample": True}, "greater than 0"),
    ],
)
def test_options_without_effect_are_faults(given, named):
    with pytest.raises(ValidationError, match=named):
        Decoding(**given)


def test_a_model_that_reads_padding_on_the_left_reads_its_prompts_without_any():
    """Its recurrent layers know of no mask, and what they have read lies where it cannot be moved."""
    made = model("recurrent_gemma")
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    prompts, decoding = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14, 15, 16, 17, 18]], Decoding(max_new_tokens=6)
    found = causal.reply(made, prompts, Tokenizer(), decoding, range(3))
    for ids, answer in zip(prompts, found, strict=True):
        [wanted] = reference(made, {"input_ids": torch.tensor([ids])}, [2], max_new_tokens=6, do_sample=False)
        assert answer["prediction"] == Tokenizer().decode(wanted)
    with pytest.raises(UserError, match="several texts"):
        causal.reply(made, prompts, Tokenizer(), Decoding(max_new_tokens=6, num_beams=2), range(3))
    assert not decode.reads_padding(model("mamba"), Tokenizer(), decoding)
    assert not decode.reads_padding(model("gpt2"), Tokenizer(), decoding)
