"""Causal language modelling: every token a target once, packed pieces apart, only answers learned, text filled in."""

import copy
import json
from functools import cache

import fine
import numpy as np
import pytest
import torch
import toys
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hftune import causal, chat, consistency, fim, heads, packing, recipe, steps, store
from hftune.batching import generator
from hftune.errors import UserError
from hftune.task import IGNORE
from hftune.tasks.clm import TASK, ClmOptions

WORDS = st.lists(st.sampled_from(["the", " file", "\n", "é", " 日本", "naïve", "0", " x", "ing", "."]), max_size=60)
DOCUMENTS = st.lists(WORDS.map("".join), min_size=1, max_size=8).filter(any)
GPT2 = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, **GPT2},
    "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "qwen3": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "intermediate_size": 64,
    },
    "mistral": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "sliding_window": 5,
    },
}  # fmt: skip


def rows_of(texts, options, tokenizer=None):
    """Texts, or rows, as the loop sees them."""
    tokenizer = tokenizer or fine.tok("gpt2")
    given = fine.rows([{"text": row} if isinstance(row, str) else row for row in texts])
    encoded = {name: c for name, c in TASK.encode(given, tokenizer, options).items() if not isinstance(c, int)}
    return steps.Rows(store.in_memory(encoded), TASK.under(options), tokenizer, options)


def whole(rows, number=None):
    """One batch of all rows, or of one."""
    chosen = range(len(rows)) if number is None else [number]
    return rows.batch(chosen, [generator(0, 0, i) for i in chosen])


def row_of(rows, number, epoch=0):
    """Ids and labels of one row, without padding."""
    batch = rows.batch([number], [generator(0, epoch, number)])
    length = int(batch["attention_mask"].sum())
    return batch["input_ids"][0, :length].tolist(), batch["labels"][0, :length].tolist()


def pieces_of(rows):
    """The pieces of all rows: (ids, length of a row's input)."""
    for i in range(len(rows)):
        row = rows.data[i]
        cuts = np.cumsum(row["pieces"])[:-1] if "pieces" in row else []
        yield from np.split(row["input_ids"], cuts)


# ------------------------------------------------------------------------------------------------ text


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.integers(8, 40), st.sampled_from(["gpt2", "t5"]))
def test_every_token_of_a_document_is_a_target_once(texts, most, kind):
    tokenizer = fine.tok(kind)
    rows = rows_of(texts, ClmOptions(max_length=most), tokenizer)
    start, end = causal.bounds(tokenizer)
    batch = whole(rows)
    documents, before = [], []
    for i in range(len(rows)):
        kept = batch["labels"][i] != IGNORE
        assert 0 < kept.sum() <= most
        assert torch.equal(kept, batch["attention_mask"][i].bool())
        ids, labels = batch["input_ids"][i][kept].tolist(), batch["labels"][i][kept].tolist()
        assert ids[1:] == labels[:-1], "a label is the next token"
        if rows.data[i]["begins"]:
            documents.append([])
            before.append(ids[0])
        else:
            assert ids[0] == documents[-1][-1], "the first token of a later row is predicted from the one before"
        documents[-1] += labels
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert documents == [[*ids, end] for ids in wanted if ids]
    assert set(before) <= {start}
    assert int(rows.data.column("bytes").sum()) == sum(
        len(t.encode()) for t, ids in zip(texts, wanted, strict=True) if ids
    )


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.integers(8, 40))
def test_packing_loses_nothing_and_keeps_pieces_whole(texts, most):
    tokenizer = fine.tok("gpt2")
    rows = rows_of(texts, ClmOptions(max_length=most, packing=True), tokenizer)
    batch = whole(rows)
    found = sorted(tuple(piece[1:].tolist()) for piece in pieces_of(rows))
    wanted = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [*ids, tokenizer.eos_token_id] if ids else []
        wanted += [tuple(ids[at : at + most]) for at in range(0, len(ids), most)]
    assert found == sorted(wanted)
    for i in range(len(rows)):
        sizes = rows.data[i]["pieces"] - 1
        positions = np.concatenate([np.arange(size) for size in sizes])
        assert batch["position_ids"][i, : len(positions)].tolist() == positions.tolist()
        assert (batch["labels"][i] != IGNORE).sum() == sizes.sum() <= most


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_best_fit_fills_rows(sizes):
    rows = packing.best_fit(np.array(sizes), 20)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(sizes)))
    filled = [sum(sizes[i] for i in row) for row in rows]
    assert max(filled) <= 20
    assert sum(2 * f <= 20 for f in filled) <= 1, "two rows that are half empty would be one"
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_nothing_depends_on_the_batch():
    texts = [row["text"][: 30 + 40 * i] for i, row in enumerate(toys_lines(6))]
    for options in (
        ClmOptions(max_length=32),
        ClmOptions(max_length=32, packing=True),
        ClmOptions(max_length=40, fim_rate=0.7),
        ClmOptions(max_length=40, fim_rate=0.7, packing=True),
    ):
        rows = rows_of(texts, options, infilling())
        batch = whole(rows)
        for i in range(len(rows)):
            alone = whole(rows, i)
            for name, values in alone.items():
                length = values.shape[1]
                assert torch.equal(batch[name][i, :length], values[0]), name
                assert not (batch["labels"][i, length:] != IGNORE).any()


def toys_lines(number):
    import tiny

    return tiny.lines("docs-text", limit=number)


def test_the_end_of_text_is_learned_where_padding_is_the_same_token():
    tokenizer = copy.deepcopy(fine.tok("gpt2"))
    tokenizer.pad_token = tokenizer.eos_token
    batch = whole(rows_of(["the file", "the file is not there", "x"], ClmOptions(), tokenizer))
    assert (batch["labels"] == tokenizer.eos_token_id).sum(1).tolist() == [1, 1, 1]
    assert (batch["labels"] != IGNORE).sum() == batch["attention_mask"].sum()


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = copy.deepcopy(fine.tok("gpt2"))
    tokenizer.eos_token = tokenizer.bos_token = None
    with pytest.raises(UserError, match="end-of-text"):
        rows_of(["x"], ClmOptions(), tokenizer)


# ------------------------------------------------------------------------------------------------ models


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "llama", "qwen3", "mistral"])
def pair(request):
    """A model, and the same texts as rows and as packed rows."""
    texts = [row["text"][: 20 + 55 * i] for i, row in enumerate(toys_lines(7))]
    plain, packed = (rows_of(texts, ClmOptions(max_length=48, packing=p)) for p in (False, True))
    return toys.model_of(request.param, SIZES[request.param], plain).eval(), plain, packed


@torch.no_grad()
def test_packed_logits_are_those_of_each_piece_alone(pair):
    model, _, packed = pair
    batch = whole(packed)
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    number = 0
    for i in range(len(packed)):
        at = 0
        for piece in np.split(packed.data[i]["input_ids"], np.cumsum(packed.data[i]["pieces"])[:-1]):
            ids = torch.tensor(piece[None, :-1].astype(np.int64))
            torch.testing.assert_close(logits[i, at : at + ids.shape[1]], model(ids).logits[0], atol=1e-5, rtol=0)
            at += ids.shape[1]
            number += 1
    assert number > len(packed), "some row must hold several pieces"


@torch.no_grad()
@pytest.mark.parametrize("head", ["full", "fused"])
def test_the_loss_is_transformers_own(pair, head):
    """On whole rows: their loss over a row with its labels shifted within the model, in float64, to 1e-6."""
    model, plain, _ = pair
    found = heads.losses(model, whole(plain), plain.task, plain.options, heads.Criterion(by_row=True, head=head))
    for i in range(len(plain)):
        ids = torch.tensor(plain.data[i]["input_ids"][None].astype(np.int64))
        own = float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        assert float(found["loss"].rows[i]) == pytest.approx(own, rel=1e-5)


@torch.no_grad()
def test_packed_rows_cost_what_their_pieces_cost(pair):
    """Through the losses that training uses, where a cache would let documents see each other without a word."""
    model, _, packed = pair
    found = heads.losses(model, whole(packed), packed.task, packed.options, heads.Criterion(by_row=True))["loss"].rows
    total = 0.0
    for piece in pieces_of(packed):
        ids = torch.tensor(piece[None].astype(np.int64))
        total += float(model(input_ids=ids, labels=ids).loss) * (len(piece) - 1)
    assert float(found.sum()) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_the_same_at_every_split(name, packed):
    texts = [row["text"][: 60 + 30 * i] for i, row in enumerate(toys_lines(24))]
    rows = rows_of(texts, ClmOptions(max_length=32, packing=packed))
    toys.assert_same_gradients_at_every_split(toys.model_of(name, SIZES[name], rows), rows)


def test_models_that_mix_packed_documents_are_refused():
    common = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    opt = transformers.OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, word_embed_proj_dim=32, **common
    )
    bloom = transformers.BloomConfig(n_layer=2, hidden_size=32, n_head=2, **common)
    for config in (opt, bloom):
        model = transformers.AutoModelForCausalLM.from_config(config)
        TASK.verify(model, ClmOptions())
        with pytest.raises(UserError, match="see each other") as fault:
            TASK.verify(model, ClmOptions(packing=True))
        assert fault.value.where == "task.packing"
        assert model.training
    for name in SIZES:
        rows = rows_of(["x"], ClmOptions())
        TASK.verify(toys.model_of(name, SIZES[name], rows), ClmOptions(packing=True))


def test_flash_attention_is_not_tried_on_a_processor():
    """What is known of it needs none: it reads from left to right as any other, and parts pieces in a lone row only."""
    model = toys.model_of("llama", SIZES["llama"], rows_of(["x"], ClmOptions()))
    model.config._attn_implementation = "flash_attention_2"
    TASK.verify(model, ClmOptions())
    with pytest.raises(UserError, match=r"flash_attention_2 attention lets packed.*\n.*sdpa, eager"):
        TASK.verify(model, ClmOptions(packing=True))
    assert model.config._attn_implementation == "flash_attention_2"


# ------------------------------------------------------------------------------------------------ prompts


def exchange(prompt, completion=None):
    return {"prompt": prompt} | ({} if completion is None else {"completion": completion})


def test_only_the_completion_and_its_end_are_learned():
    tokenizer = fine.tok("gpt2")
    rows = rows_of(
        [exchange("the file", "is not there"), exchange("", "x"), exchange("a b", "é\n")], ClmOptions(kind="prompt")
    )
    start, end = causal.bounds(tokenizer)
    for i, (prompt, completion) in enumerate([("the file\n", "is not there"), ("\n", "x"), ("a b\n", "é\n")]):
        ids, labels = row_of(rows, i)
        asked, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, completion))
        assert ids == [start, *asked, *answer]
        assert labels == [IGNORE] * len(asked) + [*answer, end]
        assert rows.data[i]["prompt"] == prompt
        assert rows.data[i]["reference"] == completion


def test_packed_prompts_learn_the_same():
    rows = [exchange("the file" * n, "is not there " * (1 + n % 3)) for n in range(12)]
    plain, packed = (rows_of(rows, ClmOptions(kind="prompt", packing=p, max_length=128)) for p in (False, True))
    assert len(packed) < len(plain)
    one, other = (whole(r)["labels"] for r in (plain, packed))
    assert sorted(one[one != IGNORE].tolist()) == sorted(other[other != IGNORE].tolist())
    assert {"prompt", "reference"} <= plain.data[0].keys()
    assert not {"prompt", "reference"} & packed.data[0].keys()


def test_a_row_with_nothing_left_to_learn_is_named_or_counted():
    rows = fine.rows([exchange("a", "b"), exchange("word " * 50, "answer"), exchange("a", "c")])
    tokenizer = fine.tok("gpt2")
    with pytest.raises(UserError, match="answer begins at token") as fault:
        TASK.encode(rows, tokenizer, ClmOptions(kind="prompt", max_length=16))
    assert fault.value.where == "rows.jsonl:2"
    dropped = TASK.encode(rows, tokenizer, ClmOptions(kind="prompt", max_length=16, on_no_target="drop"))
    assert dropped["without_target"] == 1
    assert dropped["reference"] == ["b", "c"]
    left = ClmOptions(kind="prompt", max_length=16, truncation_side="left")
    kept = rows_of(rows, left)
    ids, labels = row_of(kept, 1)
    answer = tokenizer("answer")["input_ids"]
    assert labels[-len(answer) - 1 :] == [*answer, tokenizer.eos_token_id]
    assert len(ids) == 16
    assert ids[0] == tokenizer.bos_token_id
    with pytest.raises(UserError, match="no answer") as fault:
        TASK.encode(fine.rows([exchange("a", "")]), tokenizer, ClmOptions(kind="prompt"))
    assert fault.value.where == "rows.jsonl:1"


def test_rows_that_want_an_answer_need_none():
    options = ClmOptions(kind="prompt", max_length=16).predicting()
    rows = rows_of([exchange("word " * 50), exchange("a")], options)
    assert len(rows) == 2
    assert (whole(rows)["labels"] == IGNORE).all()
    assert ClmOptions().predicting().kind == "prompt"
    text = rows_of([exchange("the file")], ClmOptions().predicting())
    assert text.data[0]["prompt"] == "the file"


def test_predictions_follow_the_prompt_alone():
    options = ClmOptions(kind="prompt", max_new_tokens=6)
    rows = [exchange("the file", "is not"), exchange("of the words that", "x"), exchange("a " * 90, "y")]
    encoded = rows_of(rows, options.evaluating())
    model = toys.model_of("gpt2", {**SIZES["gpt2"], "initializer_range": 0.5}, encoded).eval()
    raw = [{**encoded.data[i], "row": i} for i in range(3)]
    together = TASK.predict(model, None, raw, encoded.tokenizer, options)
    alone = [TASK.predict(model, None, [row], encoded.tokenizer, options)[0] for row in raw]
    assert together == alone
    assert [answer["reference"] for answer in together] == ["is not", "x", "y"]
    ids = torch.tensor([[encoded.tokenizer.bos_token_id, *encoded.tokenizer("the file\n")["input_ids"]]])
    own = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert together[0]["prediction"] == encoded.tokenizer.decode(own, skip_special_tokens=True)


# ------------------------------------------------------------------------------------------------ chat

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
ASK = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = HEAD + "{{ m.content | trim }}<|im_end|>\n" + ASK
MARKED = (
    HEAD + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}"
    "{{ m.content }}<|im_end|>{% endif %}\n" + ASK
)
UNENDED = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
THINKING = (  # puts an empty thought before the last answer alone
    HEAD
    + "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    + ASK
)
SPLITTING = (  # takes the thoughts out of what was said, and writes one before the last answer, as Qwen3's does
    HEAD
    + "{% set parts = m.content.split('</think>') %}{% set words = parts[-1].lstrip() %}{% set thought = '' %}"
    + "{% if parts | length > 1 %}{% set thought = parts[0].split('<think>')[-1].strip() %}{% endif %}"
    + "{% if m.role == 'assistant' %}{% generation %}{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    + "{{ words }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    + ASK
)
INSTRUCT = (  # the assistant's turn has no head of its own
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TOOLS = (  # writes calls into the assistant's turn and answers of tools into the user's, as Qwen2.5's does
    "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n{{ m.content or '' }}"
    "{% if 'tool_calls' in m %}{% for call in m.tool_calls %}{{ '\n' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{% endif %}<|im_end|>\n" + ASK
)
ENDLESS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TALK = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "the file"},
    {"role": "assistant", "content": " is not there "},
    {"role": "user", "content": "where then"},
    {"role": "assistant", "content": "nowhere, the file"},
]


def talker(template, *added):
    tokenizer = copy.deepcopy(fine.tok("gpt2"))
    tokenizer.chat_template = template
    tokenizer.add_tokens([*added, "<|im_start|>", "<|im_end|>"], special_tokens=True)
    return tokenizer


def learned(template, messages):
    """(text of all ids, text of the learned ones)."""
    tokenizer = talker(template)
    ids, labels = row_of(rows_of([{"messages": messages}], ClmOptions(kind="chat"), tokenizer), 0)
    return tokenizer.decode(ids), tokenizer.decode([label for label in labels if label != IGNORE])


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (CHATML, "is not there<|im_end|>nowhere, the file<|im_end|>"),
        (MARKED, " is not there <|im_end|>nowhere, the file<|im_end|>"),
        (UNENDED, " is not there <|im_end|>nowhere, the file<|im_end|>"),
        (THINKING, " is not there <|im_end|><think>\n\n</think>\n\nnowhere, the file<|im_end|>"),
        (INSTRUCT, " is not there <|endoftext|> nowhere, the file<|endoftext|>"),
    ],
    ids=["chatml", "marked", "unended", "thinking", "instruct"],
)
def test_the_assistants_turns_and_their_ends_are_learned(template, wanted):
    text, found = learned(template, TALK)
    assert found == wanted
    tokenizer = talker(template)
    rows = rows_of([{"messages": TALK}], ClmOptions(kind="chat"), tokenizer)
    own = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    assert rows.data[0]["input_ids"].tolist() == own, "the ids are the template's own"
    assert rows.data[0]["prompt"] == tokenizer.apply_chat_template(
        TALK[:-1], tokenize=False, add_generation_prompt=True
    )
    assert rows.data[0]["reference"] == "nowhere, the file"
    assert text


def test_the_mask_is_transformers_own_where_the_template_has_marks():
    """But for words that begin with a space: transformers finds no token there, and gives up the rest of the row."""
    tokenizer = talker(MARKED)
    talk = [{**message, "content": message["content"].strip()} for message in TALK]
    row = rows_of([{"messages": talk}], ClmOptions(kind="chat"), tokenizer).data[0]
    own = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert row["input_ids"].tolist() == own["input_ids"]
    assert row["trained"].tolist() == own["assistant_masks"]
    assert sum(own["assistant_masks"]) > 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=6))
def test_any_words_of_the_assistant_are_found(contents):
    messages = [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(contents)]
    spoken = [m["content"].strip() for m in messages if m["role"] == "assistant" and m["content"].strip()]
    tokenizer = talker(CHATML)
    rows = fine.rows([{"messages": messages}])
    if not spoken:
        with pytest.raises(UserError, match="no answer"):
            TASK.encode(rows, tokenizer, ClmOptions(kind="chat"))
        return
    found = TASK.encode(rows, tokenizer, ClmOptions(kind="chat"))
    ids, trained = found["input_ids"][0], found["trained"][0].astype(bool)
    ends = [text + "<|im_end|>" for text in spoken]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ends]
    assert int((ids[trained] == tokenizer.convert_tokens_to_ids("<|im_end|>")).sum()) >= len(spoken)
    assert len(ids[trained]) >= max(map(len, encoded)) - 1


THOUGHTS = st.sampled_from(["", "so", "<|im_start|> or\n\nso"]).map(lambda t: f"<think>\n{t}\n</think>\n\n")
TURNS = st.lists(
    st.tuples(st.just("") | THOUGHTS, st.text("ab \n", min_size=1).filter(str.strip)), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(TURNS)
def test_thoughts_that_the_template_moves_are_part_of_the_turn(said):
    """Without its marks a template learns what it learns with them, whichever answers were thought about."""
    messages = [
        {"role": role, "content": text}
        for thought, words in said
        for role, text in (("user", "the file"), ("assistant", thought + words))
    ]
    unmarked = SPLITTING.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    (text, found), (same, wanted) = (chat.turns(talker(template), messages) for template in (unmarked, SPLITTING))
    assert text == same
    assert [text[a:b].rstrip() for a, b in found] == [text[a:b].rstrip() for a, b in wanted]
    assert len(found) == len(said)


def calling(words):
    """A conversation in which the assistant asks two tools, with these words or none, and then answers."""
    calls = [{"type": "function", "function": {"name": "look", "arguments": {"at": at}}} for at in ("here", "there")]
    asking = {"role": "assistant", "content": words, "tool_calls": calls}
    return [TALK[1], asking, {"role": "tool", "content": "nothing"}, {"role": "assistant", "content": "it is gone"}]


CALLED = "".join(
    f'\n<tool_call>\n{{"name": "look", "arguments": {{"at": "{at}"}}}}\n</tool_call>' for at in ("here", "there")
)


@pytest.mark.parametrize("words", ["", None, "I look."])
@pytest.mark.parametrize("added", [(), ("<tool_call>", "</tool_call>")], ids=["plain", "special"])
def test_tool_calls_are_part_of_the_turn_and_its_end_too(words, added):
    tokenizer = talker(TOOLS, *added)
    for messages, wanted in (
        (calling(words), f"{words or ''}{CALLED}<|im_end|>it is gone<|im_end|>"),
        (calling(words)[:2], f"{words or ''}{CALLED}<|im_end|>"),
    ):
        rows = rows_of([{"messages": messages}], ClmOptions(kind="chat"), tokenizer)
        ids, labels = row_of(rows, 0)
        assert tokenizer.decode([label for label in labels if label != IGNORE]) == wanted
        assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False).rstrip()


@pytest.mark.parametrize("written", [lambda tools: tools, json.dumps], ids=["list", "text"])
def test_tools_beside_the_messages_are_given_to_the_template(written):
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"at": {"type": "string"}}}}]
    tokenizer = talker("{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}" + TOOLS)
    given, absent = {"messages": calling(""), "tools": written(tools)}, {"messages": calling(""), "tools": None}
    with_tools, without = (rows_of([row], ClmOptions(kind="chat"), tokenizer) for row in (given, absent))
    wanted = tokenizer.apply_chat_template(calling(""), tools=tools, tokenize=False)
    assert tokenizer.decode(row_of(with_tools, 0)[0]) == wanted.rstrip()
    assert '"name": "look", "parameters"' in with_tools.data[0]["prompt"]
    assert "parameters" not in without.data[0]["prompt"]
    learned_of = [[id for id in row_of(rows, 0)[1] if id != IGNORE] for rows in (with_tools, without)]
    assert learned_of[0] == learned_of[1]


def test_a_column_that_is_mapped_to_the_tools_is_read():
    made = recipe.from_dict(
        {
            "task": {"name": "clm", "kind": "chat"},
            "model": {"init": "gpt2"},
            "data": {"train": "rows.jsonl", "columns": {"tools": "functions", "tool": "functions"}},
            "output": {"dir": "run"},
        }
    )
    (told,) = consistency.warnings(made, TASK)
    assert "data.columns.tool: the task reads no column of this name" in told


@pytest.mark.parametrize("tools", ["look", {"name": "look"}, [1]])
def test_tools_that_are_no_list_of_objects_are_a_fault(tools):
    with pytest.raises(UserError, match="tools must be a list of objects") as fault:
        chat.tools_of(tools, "rows.jsonl:1")
    assert fault.value.where == "rows.jsonl:1"


@pytest.mark.parametrize("template", [CHATML, TOOLS.replace("call.function.name", "call.function.name[:2]"), INSTRUCT])
def test_a_template_that_does_not_write_the_calls_is_a_fault(template):
    with pytest.raises(UserError, match="leaves out the assistant's words or tool calls") as fault:
        chat.turns(talker(template), calling("")[:2], "rows.jsonl:1")
    assert fault.value.where == "rows.jsonl:1"


PARTS = CHATML.replace(  # takes both, as Gemma 3's does
    "{{ m.content | trim }}",
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}",
)


@pytest.mark.parametrize("template", [CHATML, PARTS])
def test_content_in_parts_of_text_is_the_text(template):
    parts = [{"type": "text", "text": "the file "}, {"type": "text", "text": "is gone", "image": None}]
    asked, answered = ([TALK[1], {"role": "assistant", "content": content}] for content in (parts, "the file is gone"))
    assert learned(template, asked) == learned(template, answered)
    row = rows_of([{"messages": asked}], ClmOptions(kind="chat"), talker(template)).data[0]
    assert row["reference"] == "the file is gone"
    rows = [{"messages": asked}, {"messages": "the file"}]  # one without an answer may have been dropped
    assert TASK.baseline(rows, rows[:1], ClmOptions(kind="chat")) == ["the file is gone"]


def test_keys_that_are_null_are_as_if_they_were_not_there():
    """A Parquet file gives each message, and each object within, all the keys that any has."""
    arguments = [{"at": "here", "how": None}, {"at": None, "how": "twice"}]
    calls = [{"function": {"name": "look", "arguments": given}, "id": None} for given in arguments]
    messages = [
        {"role": "user", "content": "the file", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    assert chat.messages_of([{"role": "user"}], None, "Now: ") == [{"role": "user", "content": "Now: "}]
    found = chat.messages_of(messages, None)
    assert found[0] == {"role": "user", "content": "the file"}
    assert found[1]["content"] is None
    assert [call["function"]["arguments"] for call in found[1]["tool_calls"]] == [{"at": "here"}, {"how": "twice"}]
    assert "null" not in chat.render(talker(TOOLS), found)
    (row,) = fine.rows([{"messages": messages}])
    assert TASK.encode([row], talker(TOOLS), ClmOptions(kind="chat"))["trained"][0].any()


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("m.content | trim", "m.content.split('</think>')[0]"),  # loses an end
        ENDLESS.replace("m.content", "m.content.split('</think>')[-1]"),  # loses a beginning, and has no prompt
    ],
)
def test_a_turn_of_which_a_mark_is_lost_is_a_fault(template):
    messages = [TALK[1], {"role": "assistant", "content": "so</think>yes"}]
    with pytest.raises(UserError, match="changes the assistant's words") as fault:
        chat.turns(talker(template), messages, "rows.jsonl:1")
    assert fault.value.where == "rows.jsonl:1"


def test_faults_of_conversations_say_what_to_do():
    cases = [
        (talker(None), TALK, "no chat template", "tokenizer.chat_template"),
        (talker(ENDLESS), TALK, "learn to stop", "tokenizer.chat_template"),
        (talker(CHATML), TALK[:2], "no answer", "rows.jsonl:1"),
        (talker(CHATML), {"from": "human"}, "list of objects", "rows.jsonl:1"),
        (talker(CHATML), [{"from": "human", "value": "x"}], "role and content", "rows.jsonl:1"),
        (talker("{{ raise_exception('roles must alternate') }}"), TALK, "roles must alternate", "rows.jsonl:1"),
        (
            talker("{% for m in messages %}{{ m.content | upper | truncate(12) }}{% endfor %}"),
            TALK,
            "changes",
            "rows.jsonl:1",
        ),
    ]
    for tokenizer, messages, message, where in cases:
        with pytest.raises(UserError, match=message) as fault:
            TASK.encode(fine.rows([{"messages": messages}]), tokenizer, ClmOptions(kind="chat"))
        assert fault.value.where == where
        assert fault.value.hint


def test_a_question_alone_is_a_conversation_and_the_turns_end_ends_the_answer():
    tokenizer = talker(CHATML)
    options = ClmOptions(kind="chat").predicting()
    row = rows_of([{"messages": "the file"}], options, tokenizer).data[0]
    assert row["prompt"] == "<|im_start|>user\nthe file<|im_end|>\n<|im_start|>assistant\n"
    assert chat.end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_baseline_knows_the_commonest_answer():
    talk = [[("user", "a b c"), ("assistant", word)] for word in ("yes", "no", "no")]
    talk = [[{"role": role, "content": text} for role, text in exchange] for exchange in talk]
    asked = [[{"role": "user", "content": text}, TALK[2]] for text in ("a b c", "new words")]
    found = TASK.baseline([{"messages": m} for m in talk], [{"messages": m} for m in asked], ClmOptions(kind="chat"))
    assert found == ["no", "new"]
    prompts = [exchange("a b c", "x y"), exchange("a b", "z w")]
    assert TASK.baseline(prompts, [exchange("a b"), exchange("d e f")], ClmOptions(kind="prompt")) == ["z w", "d e"]


# ------------------------------------------------------------------------------------------------ fill in the middle


@cache
def infilling():
    """A tokenizer with the marks."""
    tokenizer = copy.deepcopy(fine.tok("gpt2"))
    tokenizer.add_tokens(TASK.tokens(ClmOptions(fim_rate=0.5), tokenizer), special_tokens=True)
    return tokenizer


FIM = fim.MARKS[0]


@settings(max_examples=150, deadline=None)
@given(WORDS.filter(bool), st.integers(0, 2**32), st.booleans())
def test_rearranged_text_is_the_text(words, seed, spm):
    tokenizer, text = infilling(), "".join(words)
    ids = np.array(tokenizer(text)["input_ids"])
    found = fim.rearrange(ids, tokenizer, np.random.default_rng(seed), float(spm))
    pre, suf, mid = tokenizer.convert_tokens_to_ids(list(FIM))
    at = [found.tolist().index(mark) for mark in (pre, suf, mid)]
    assert len(found) <= len(ids) + fim.EXTRA - 1
    if spm:
        assert at[:2] == [0, 1]
        suffix, rest = found[2 : at[2]], found[at[2] + 1 :]
        assert tokenizer.decode([*rest, *suffix]) == text
    else:
        assert at[0] == 0
        prefix, suffix, middle = found[1 : at[1]], found[at[1] + 1 : at[2]], found[at[2] + 1 :]
        assert tokenizer.decode([*prefix, *middle, *suffix]) == text


def test_rows_are_filled_in_at_the_rate_and_only_in_training():
    options = ClmOptions(max_length=48, fim_rate=0.6, fim_spm_rate=0.25)
    rows = rows_of([row["text"][:3000] for row in toys_lines(10)], options, infilling())
    pre, suf, mid = rows.tokenizer.convert_tokens_to_ids(list(FIM))
    seen = spm = number = 0
    for epoch in range(4):
        for i in range(len(rows)):
            ids, labels = row_of(rows, i, epoch)
            assert len(ids) <= 48
            assert ids[1:] == labels[:-1]
            number += 1
            if mid in ids:
                seen += 1
                spm += ids[1:3] == [pre, suf]
                assert ids.count(mid) == ids.count(pre) == ids.count(suf) == 1
                assert labels[-1] == rows.tokenizer.eos_token_id
    assert number > 800
    assert abs(seen / number - 0.6) < 4 * np.sqrt(0.24 / number)
    assert abs(spm / seen - 0.25) < 4 * np.sqrt(0.19 / seen)
    assert options.evaluating().fim_rate == 0
    assert TASK.tokens(ClmOptions(), rows.tokenizer) == []
    assert TASK.tokens(ClmOptions(add_tokens=("<x>",)), rows.tokenizer) == ["<x>"]


def test_published_marks_are_recognised():
    tokenizer = copy.deepcopy(fine.tok("gpt2"))
    tokenizer.add_tokens(list(fim.MARKS[1]), special_tokens=True)
    assert fim.marks(tokenizer) == fim.MARKS[1]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"kind": "chat", "fim_rate": 0.5}, "fim_rate"),
        ({"separator": " "}, "separator"),
        ({"on_no_target": "drop"}, "on_no_target"),
        ({"fim_spm_rate": 0.1}, "fim_rate"),
        ({"kind": "prompt", "temperature": 0.5}, "do_sample"),
    ],
)
def test_options_without_effect_are_faults(given, named):
    with pytest.raises(ValidationError, match=named):
        ClmOptions(**given)
