"""Masked language modelling: rates, whole words, spans, pairs of segments, and both losses."""

import json

import children
import fine
import numpy as np
import pytest
import splits
import test_loop
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from hftune import arrays, heads, masking, store
from hftune.batching import Plan, generator
from hftune.errors import UserError
from hftune.steps import Rows, Steps
from hftune.task import IGNORE
from hftune.tasks import mlm

ROWS = 3000
ENTRIES = 420
ways = st.sampled_from([{}, {"whole_word": True}, {"span_masking": True}])
rates = st.sampled_from([0.01, 0.15, 0.3, 0.7, 1.0])
seeds = st.integers(0, 2**32)


def random_row(rng, longest=80, special=0.1, within=0.4):
    """Ids of which some are special, and words of one or more tokens."""
    tok = fine.tok("bert")
    size = int(rng.integers(1, longest))
    ids = rng.integers(len(tok), size=size).astype(np.int32)
    ids[rng.random(size) < special] = rng.choice(tok.all_special_ids)
    return {"input_ids": ids, "word_starts": (rng.random(size) > within).astype(np.int8)}


def random_rows(seed, number=40, **more):
    rng = np.random.default_rng(seed)
    return [random_row(rng, **more) for _ in range(number)]


def rngs(number, seed=0):
    return [generator(seed, 0, i) for i in range(number)]


def unpadded(batch, row):
    kept = batch["attention_mask"][row].astype(bool)
    return {name: batch[name][row][kept] for name in ("input_ids", "labels")}


def runs_of_words(row):
    """Positions of each word: from a token that begins one, or stands behind a special one, to the next."""
    special = set(fine.tok("bert").all_special_ids)
    words, before = [], -2
    for at, (token, start) in enumerate(zip(row["input_ids"].tolist(), row["word_starts"].tolist(), strict=True)):
        if token in special:
            continue
        if start or before != at - 1:
            words.append([])
        words[-1].append(at)
        before = at
    return words


@given(seeds, rates, ways)
def test_what_is_masked(seed, rate, way):
    tok, rows = fine.tok("bert"), random_rows(seed)
    options = mlm.MlmOptions(mask_rate=rate, **way)
    batch = mlm.collate(rows, tok, options, rngs(len(rows)))
    for number, row in enumerate(rows):
        found, ids = unpadded(batch, number), row["input_ids"]
        special, asked = np.isin(ids, tok.all_special_ids), found["labels"] != IGNORE
        assert len(found["input_ids"]) == len(ids)
        assert (found["input_ids"][~asked] == ids[~asked]).all(), "what is not predicted is not touched"
        assert (found["labels"][asked] == ids[asked]).all()
        assert not asked[special].any(), "special tokens are neither masked nor predicted"
        assert asked.any() or special.all(), "at least one target"
        new = found["input_ids"][asked & (found["input_ids"] != ids)]
        assert np.isin(new, [i for i in tok.all_special_ids if i != tok.mask_token_id]).sum() == 0
        if way:
            assert all(asked[word].all() or not asked[word].any() for word in runs_of_words(row))
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE).all()


@given(seeds, rates, ways)
def test_nothing_depends_on_the_batch(seed, rate, way):
    rows = random_rows(seed, 12)
    options = mlm.MlmOptions(mask_rate=rate, **way)
    together = mlm.collate(rows, fine.tok("bert"), options, rngs(12))
    for number, row in enumerate(rows):
        alone = unpadded(mlm.collate([row], fine.tok("bert"), options, [generator(0, 0, number)]), 0)
        for name, values in unpadded(together, number).items():
            assert values.tolist() == alone[name].tolist()


@pytest.mark.parametrize("rate", [0.15, 0.5])
@pytest.mark.parametrize("way", [{}, {"whole_word": True}, {"span_masking": True}], ids=["tokens", "words", "spans"])
def test_the_rate_is_exact_on_average(way, rate):
    rows = random_rows(1, ROWS, special=0.05)
    rows = [row for row in rows if len(row["input_ids"]) > 30]  # where at least one target is no more than the rate
    options = mlm.MlmOptions(mask_rate=rate, **way)
    labels = [
        masking.mask_row(row["input_ids"], row["word_starts"], fine.tok("bert"), options, rng)[1]
        for row, rng in zip(rows, rngs(len(rows)), strict=True)
    ]
    there = sum(int((~np.isin(row["input_ids"], fine.tok("bert").all_special_ids)).sum()) for row in rows)
    masked = sum(int((found != IGNORE).sum()) for found in labels)
    longest = 1 if not way else 4  # tokens by which a row may be off, in the mean square
    assert abs(masked - rate * there) < 5 * longest * 0.5 * np.sqrt(len(rows))


def fates(options, number=ROWS):
    """Of the tokens to be predicted: how many there are, became the mask, became another token, stayed."""
    tok, found = fine.tok("bert"), np.zeros(4, int)
    for row, rng in zip(random_rows(2, number), rngs(number, 5), strict=True):
        ids = row["input_ids"]
        inputs, labels = masking.mask_row(ids, row["word_starts"], tok, options, rng)
        asked = labels != IGNORE
        masked, same = inputs == tok.mask_token_id, inputs == ids
        found += [asked.sum(), (asked & masked).sum(), (asked & ~masked & ~same).sum(), (asked & same).sum()]
    return found


@pytest.mark.parametrize("way", [{}, {"whole_word": True}, {"span_masking": True}], ids=["tokens", "words", "spans"])
@pytest.mark.parametrize(("to_mask", "to_random"), [(0.8, 0.1), (0.85, 0.0), (0.2, 0.5)])
def test_of_the_targets_80_percent_are_masked_10_random_10_kept(way, to_mask, to_random):
    options = mlm.MlmOptions(mask_token_rate=to_mask, random_token_rate=to_random, **way)
    total, *found = fates(options)
    hit = to_random / (ENTRIES - 5)  # a random token may be the one that was there
    expected = np.array([to_mask, to_random - hit, 1 - to_mask - to_random + hit])
    together = 12 if way.get("span_masking") else 1  # tokens of a span have one fate
    assert (np.abs(np.array(found) / total - expected) < 5 * np.sqrt(0.25 * together / total)).all()


def test_the_tokens_of_a_span_have_one_fate():
    tok, seen = fine.tok("bert"), set()
    options = mlm.MlmOptions(span_masking=True, mask_rate=0.4, mask_token_rate=0.5, random_token_rate=0.0)
    for row, rng, again in zip(random_rows(3, 400), rngs(400), rngs(400), strict=True):
        inputs, _ = masking.mask_row(row["input_ids"], row["word_starts"], tok, options, rng)
        candidates = np.flatnonzero(~np.isin(row["input_ids"], tok.all_special_ids))
        if not len(candidates):
            continue
        wanted = max(1, int(len(candidates) * options.mask_rate + again.random()))
        chosen, span = masking.spans_of_words(candidates, row["word_starts"], wanted, again)
        for number in set(span.tolist()):
            fate = set((inputs[chosen[span == number]] == tok.mask_token_id).tolist())
            assert len(fate) == 1
            seen |= fate
    assert seen == {True, False}


@given(seeds, st.integers(1, 60))
def test_spans_are_of_one_to_ten_neighbouring_words(seed, wanted):
    rng = np.random.default_rng(seed)
    row = random_row(rng)
    candidates = np.flatnonzero(~np.isin(row["input_ids"], fine.tok("bert").all_special_ids))
    if not len(candidates):
        return
    chosen, span = masking.spans_of_words(candidates, row["word_starts"], wanted, rng)
    words = runs_of_words(row)
    assert len(set(chosen.tolist())) == len(chosen) > 0
    for number in set(span.tolist()):
        tokens = chosen[span == number]
        inside = [word for word in words if word[0] in tokens]
        assert sorted(tokens.tolist()) == [at for word in inside for at in word], "whole words"
        assert 1 <= len(inside) <= 10
        assert np.ptp(tokens) == len(tokens) - 1, "side by side, no special token between"


def test_span_lengths_are_geometric_and_3_8_on_average():
    """Joshi et al. 2020, section 3.1: p = 0.2, at most ten words, mean 3.8."""
    rng, lengths = np.random.default_rng(0), []
    for _ in range(8):
        _, span = masking.spans_of_words(np.arange(200_000), np.ones(200_000), 2000, rng)
        lengths += np.bincount(span)[:-1].tolist()  # the last is cut short
    shares = np.bincount(lengths, minlength=11)[1:] / len(lengths)
    law = 0.8 ** np.arange(10) / (0.8 ** np.arange(10)).sum()
    assert max(lengths) == 10
    assert np.mean(lengths) == pytest.approx(3.8, abs=0.1)
    assert np.abs(shares - law).max() < 5 * np.sqrt(0.25 / len(lengths))  # few spans run into one another


def test_the_mask_rate_is_a_function_of_the_step():
    options = mlm.MlmOptions(mask_rate=0.6, mask_rate_end=0.2)
    assert [options.at(done).mask_rate for done in (0.0, 0.5, 1.0)] == pytest.approx([0.6, 0.4, 0.2])
    data = store.in_memory({"input_ids": arrays.Ragged.of([np.full(120, 50 + i) for i in range(64)])})
    rows = Rows(data, mlm.TASK, fine.tok("bert"), options)
    steps = Steps(rows, Plan(data.lengths, 0, 64), 0, 10**6, total=10)

    def share(batch):
        return float((batch["labels"] != IGNORE).float().mean())

    found = [share(steps[number].batches[0]) for number in range(10)]
    assert found == pytest.approx([0.6 - 0.04 * number for number in range(10)], abs=0.005)
    assert torch.equal(steps[7].batches[0]["labels"], steps[7].batches[0]["labels"])
    assert share(rows.batch(range(64), rngs(64))) == pytest.approx(0.2, abs=0.005), "evaluation is at the final rate"


def test_shares_beyond_one_are_refused():
    with pytest.raises(ValueError, match="more than 1"):
        mlm.MlmOptions(mask_token_rate=0.8, random_token_rate=0.3)


def test_a_tokenizer_without_mask_token_is_refused():
    with pytest.raises(UserError, match="no mask token") as fault:
        mlm.encode(fine.rows([{"text": "a"}]), fine.tok("gpt2"), mlm.MlmOptions())
    assert fault.value.where == "tokenizer", "the model may be the right one"


# ---------------------------------------------------------------- pairs of segments
# Document d consists of its own letter alone, so that every token tells where it is from.

sentences = st.lists(st.integers(1, 30), max_size=12)
documents = st.lists(sentences, min_size=2, max_size=8)


def written(lengths, letter):
    """A document of sentences of so many words."""
    return " ".join(" ".join([letter] * n) + "." for n in lengths)


def pairs(texts, **given_options):
    tok = fine.tok("bert")
    options = mlm.MlmOptions(**{"max_length": 32, "next_sentence": "nsp", **given_options})
    return store.in_memory(mlm.encode(fine.rows([{"text": text} for text in texts]), tok, options)), options, tok


def segments(row, tok):
    """The texts of both segments of an encoded row."""
    ids, second = row["input_ids"].tolist(), int(row["second"])
    assert ids[0] == tok.cls_token_id
    assert ids[second - 1] == ids[-1] == tok.sep_token_id
    return tok.decode(ids[1 : second - 1]), tok.decode(ids[second:-1])


@given(documents, st.sampled_from(["nsp", "sop"]), st.booleans())
def test_pairs_are_of_one_document_or_of_two(lengths, kind, whole_word):
    texts = [written(part, "abcdefgh"[i]) for i, part in enumerate(lengths)]
    rows, options, tok = pairs(texts, next_sentence=kind, whole_word=whole_word)
    for i in range(len(rows)):
        first, second = segments(rows[i], tok)
        letters = [set(part) - set(". ") for part in (first, second)]
        assert first
        assert second
        assert len(rows[i]["input_ids"]) <= options.max_length
        if all(letters):  # segments of full stops alone tell nothing
            assert (letters[0] != letters[1]) == bool(rows[i]["unrelated"]) or sum(map(bool, lengths)) == 1
            assert all(len(one) == 1 for one in letters)
        assert not (kind == "sop" and rows[i]["unrelated"])
        assert rows.has("word_starts") == whole_word
    again = pairs(texts, next_sentence=kind, whole_word=whole_word)[0]
    assert all((rows[i]["input_ids"] == again[i]["input_ids"]).all() for i in range(len(rows)))


def numbered(sizes):
    """Sentences of single letters that run through the alphabet: the order of the tokens shows."""
    letters = iter("abcdefghijklmnopqrstuvwxyz" * 50)
    return " ".join(" ".join(next(letters) for _ in range(n)) + "." for n in sizes)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_the_second_segment_goes_on_where_the_first_ends(sizes):
    """But for what is cut off to fit; and of a document that is not cut, nothing is lost."""
    text = numbered(sizes)
    rows, _, tok = pairs([text], next_sentence="sop", max_length=128)
    whole = tok(text, add_special_tokens=False)["input_ids"]
    for i in range(len(rows)):
        row, second = rows[i]["input_ids"].tolist(), int(rows[i]["second"])
        place = [
            tok.convert_tokens_to_ids(tok.convert_ids_to_tokens(part)) for part in (row[1 : second - 1], row[second:-1])
        ]
        assert rows[i]["unrelated"] == 0
        assert all(part for part in place)
        joined = place[0] + place[1]
        starts = [s for s in range(len(whole)) if whole[s : s + len(place[0])] == place[0]]
        after = [s for s in range(len(whole)) if whole[s : s + len(place[1])] == place[1]]
        assert any(b >= a + len(place[0]) for a in starts for b in after)
        if len(whole) <= 125:
            assert joined == whole


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.lists(st.integers(1, 12), min_size=1, max_size=9))
def test_what_a_random_segment_stands_for_begins_the_next_pair(sizes, others):
    """Of a document that fits a row nothing is lost but half of a last sentence without another to stand beside."""
    text = numbered(sizes)
    rows, _, tok = pairs([text, "0. " * len(others)], max_length=512)
    whole, found = tok(text, add_special_tokens=False)["input_ids"], []
    for i in range(len(rows)):
        row, second = rows[i]["input_ids"].tolist(), int(rows[i]["second"])
        if "0" not in tok.decode(row[1 : second - 1]):
            found += row[1 : second - 1] + ([] if rows[i]["unrelated"] else row[second:-1])
    assert whole[: len(found)] == found
    assert len(whole) - len(found) <= (sizes[-1] + 2) // 2


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 80), seeds)
def test_the_longer_segment_is_cut_at_either_end(first, second, room, seed):
    parts = np.arange(first), np.arange(100, 100 + second)
    found = mlm.truncate(*parts, room, np.random.default_rng(seed))
    sizes = [len(part) for part in found]
    assert sum(sizes) == min(room, first + second)
    for part, whole in zip(found, parts, strict=True):
        assert (np.diff(part) == 1).all()
        assert len(part) in (len(whole), *range(room // 2, room)), "never below half of the room"
    cut = [len(part) < len(whole) for part, whole in zip(found, parts, strict=True)]
    if all(cut):
        assert abs(sizes[0] - sizes[1]) <= 1
    many = [mlm.truncate(np.arange(90), np.arange(9), 50, np.random.default_rng(n))[0][0] for n in range(100)]
    assert 15 < np.mean(many) < 35, "of 49 tokens some half are taken off the front"


def test_half_of_the_pairs_are_random():
    texts = [row["text"][:3000] for row in tiny.lines("docs-text", limit=120)]
    rows, _, _ = pairs(texts, max_length=64)
    random = sum(int(rows[i]["unrelated"]) for i in range(len(rows)))
    assert len(rows) > 1000
    assert abs(random / len(rows) - 0.5) < 5 * np.sqrt(0.25 / len(rows))
    longest = [len(rows[i]["input_ids"]) for i in range(len(rows))]
    assert np.mean(np.array(longest) == 64) > 0.8, "rows are full"


def test_half_of_the_pairs_of_a_document_by_itself_are_random():
    """None was, so that a model learned from one book, or from books too long to be read together, that all is next."""
    text = " ".join(row["text"] for row in tiny.lines("docs-text", limit=120))
    rows, _, _ = pairs([text], max_length=64)
    random = sum(int(rows[i]["unrelated"]) for i in range(len(rows)))
    assert abs(random / len(rows) - 0.5) < 5 * np.sqrt(0.25 / len(rows))
    short, _, _ = pairs([written([3, 4], "a")])
    assert [short[i]["unrelated"] for i in range(len(short))] == [0], "there is nothing else"


def test_sentence_order_swaps_half_of_the_pairs():
    texts = [numbered([5] * 8) for _ in range(3)]
    rows, options, tok = pairs(texts, next_sentence="sop", whole_word=True, max_length=48)
    row, labels = rows[0], []
    first, second = segments(row, tok)
    for number in range(400):
        found, label = mlm.as_pair(row, mlm.pair_frame(tok), options, generator(0, 0, number))
        labels.append(label)
        ids, types = found["input_ids"], found["token_type_ids"]
        begin = int(types.argmax())
        parts = tok.decode(ids[1 : begin - 1]), tok.decode(ids[begin:-1])
        assert parts == ((second, first) if label else (first, second))
        assert sorted(ids.tolist()) == sorted(row["input_ids"].tolist())
        assert found["word_starts"][begin] == row["word_starts"][1 if label else int(row["second"])]
    assert abs(np.mean(labels) - 0.5) < 5 * np.sqrt(0.25 / 400)


def test_pairs_in_a_batch():
    texts = [row["text"][:1500] for row in tiny.lines("docs-text", limit=20)]
    rows, options, tok = pairs(texts, max_length=64)
    some = [rows[i] for i in range(30)]
    batch = mlm.collate(some, tok, options, rngs(30))
    assert batch["next_sentence_label"].tolist() == [row["unrelated"] for row in some]
    for i, row in enumerate(some):
        size, second = len(row["input_ids"]), int(row["second"])
        types = batch["token_type_ids"][i]
        assert types[:size].tolist() == [0] * second + [1] * (size - second)
        asked = batch["labels"][i] != IGNORE
        assert asked.any()
        assert not asked[[0, second - 1, size - 1]].any()


# ---------------------------------------------------------------- the losses


def nsp(folder, tokenizer, kind="nsp", **train):
    source = tiny.mlm(folder, **train)
    config = {**tiny.MODEL["config"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {
        **source,
        "task": {"name": "mlm", "max_length": 48, "next_sentence": kind},
        "model": {"init": "bert", "config": config},
        "tokenizer": {"path": tokenizer},
    }


@pytest.fixture(scope="module")
def job(tmp_path_factory, tokenizer_folder):
    return test_loop.pieces(tmp_path_factory.mktemp("nsp"), nsp, str(tokenizer_folder))


def test_the_task_varies_with_its_options():
    plain, paired = (mlm.TASK.under(mlm.MlmOptions(next_sentence=kind)) for kind in (None, "sop"))
    assert (plain.head, [term.name for term in plain.terms], plain.predict) == ("AutoModelForMaskedLM", ["loss"], None)
    assert (paired.head, [term.name for term in paired.terms]) == ("AutoModelForPreTraining", ["mlm", "sop"])


@pytest.mark.parametrize("head", ["full", "kept", "fused"])
def test_the_loss_is_that_of_transformers(job, head):
    prepared, model = job
    rows = prepared.rows["train"]
    batch = rows.batch(range(10), rngs(10))
    factors = {term.name: 1 / (batch[term.labels] != IGNORE).sum() for term in prepared.task.terms}
    found = heads.losses(model, batch, prepared.task, prepared.options, heads.Criterion(factors, head=head))
    theirs = model(**batch).loss
    assert type(model).__name__ == "BertForPreTraining"
    assert sum(part.total for part in found.values()).item() == pytest.approx(theirs.item(), abs=1e-6)


def test_gradients_are_the_same_at_every_split(job):
    prepared, model = job
    assert list(splits.assert_same(model, prepared.rows["train"])) == ["mlm", "nsp"]


def test_a_model_without_a_second_head_is_named(tmp_path, tokenizer_folder):
    source = nsp(tmp_path, str(tokenizer_folder))
    source["model"] = {"init": "roberta", "config": {**tiny.SIZES["bert"], "max_position_embeddings": 130}}
    prepared, model = test_loop.pieces(tmp_path, lambda _: source)
    batch = prepared.rows["train"].batch([0], rngs(1))
    with pytest.raises(UserError, match="roberta has no head for pairs"):
        heads.losses(model, batch, prepared.task, prepared.options, heads.Criterion(head="full"))


@pytest.mark.parametrize(("init", "kind"), [("bert", "nsp"), ("albert", "sop")])
def test_a_run_reports_both_losses(tmp_path, tokenizer_folder, init, kind):
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

    source = nsp(tmp_path, str(tokenizer_folder), kind)
    source["model"] = {
        "init": init,
        "config": {**source["model"]["config"], **({"embedding_size": 16} if init == "albert" else {})},
    }
    source["task"] |= {"span_masking": True, "mask_rate": 0.3, "mask_rate_end": 0.15}
    assert children.child(children.train, source) == 0
    folder = tmp_path / "run"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for entry in log:
        prefix = "" if "loss" in entry else "eval_"
        parts = entry[f"{prefix}mlm_loss"] + entry[f"{prefix}{kind}_loss"]
        assert entry[f"{prefix}loss"] == pytest.approx(parts, abs=1e-9)
    figures = json.loads((folder / "metrics.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions" / "validation.jsonl").read_text().splitlines()]
    assert figures["perplexity"]["value"] == pytest.approx(np.exp(figures["mlm_loss"]["value"]))
    assert figures[f"{kind}_loss"]["count"] == len(rows) == figures["accuracy"]["count"]
    assert figures["accuracy"]["value"] == pytest.approx(
        np.mean([row["prediction"] == row["reference"] for row in rows])
    )
    assert all(row["prediction"] == max(row["scores"], key=row["scores"].get) for row in rows)
    surprise = -np.mean([np.log(row["scores"][row["reference"]]) for row in rows])
    assert figures[f"{kind}_loss"]["value"] == pytest.approx(surprise, abs=1e-5)
    for auto in (AutoModelForPreTraining, AutoModelForMaskedLM):
        _, info = auto.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
