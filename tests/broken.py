"""Recipes and data that are broken in the ways that people report of other tools: one case for each."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tiny

MADE: dict[str, Path] = {}  # name of an architecture -> folder with a tiny model and its tokenizer; see `models`


class Case(NamedTuple):
    """What is broken, and what `hftune check` must say of it.

    Attributes:
        make: `(folder) -> recipe`, a dict, or the text or bytes of a recipe file; it may write files into the folder.
        words: what must occur in the answer.
        warning: the run would work: it is a warning, not a fault.
    """

    make: Callable[[Path], Any]
    words: tuple[str, ...]
    warning: bool = False


CASES: dict[str, Case] = {}


def case(name: str, *words: str, warning: bool = False) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Add a case."""

    def add(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        assert name not in CASES
        CASES[name] = Case(make, words, warning)
        return make

    return add


def models(home: Path) -> None:
    """Tiny models with tokenizers, as save_pretrained writes them."""
    import zoo

    from hftune import tokenizer

    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    for name, head, settings in (
        ("bert", zoo.CLASSIFY, labels),
        ("gpt2", zoo.CLM, {}),
        ("t5", zoo.S2S, {}),
        ("deberta-v2", zoo.MLM, {}),
        ("marian", zoo.S2S, {}),
    ):
        from hftune import models as library
        from hftune.schema import Model

        size = zoo.SIZE | ({} if name == "t5" else {"max_position_embeddings": 64})
        built = library.build(Model(init=name, config=size), head, zoo.tok(name), settings=settings, seed=0)
        built.model.save_pretrained(home / name)
        tokenizer.save(zoo.tok(name), home / name)
        MADE[name] = home / name


def rows(folder: Path, values: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    """A file of rows."""
    return str(tiny.write_rows(folder / name, values))


def tweets(number: int = 12) -> list[dict[str, Any]]:
    """Rows of two labels."""
    found = tiny.lines("sentiment-tweets", limit=number)
    return [
        {"text": row["text"].encode("ascii", "ignore").decode(), "label": ("negative", "positive")[i % 2]}
        for i, row in enumerate(found)
    ]


def classify(folder: Path, values: Any = None, **blocks: Any) -> dict[str, Any]:
    """Classification with the tiny BERT; blocks are merged key by key."""
    return _recipe(folder, "classify", "bert", values if values is not None else tweets(), blocks)


def clm(folder: Path, values: Any, **blocks: Any) -> dict[str, Any]:
    """Causal language modelling with the tiny GPT-2."""
    return _recipe(folder, "clm", "gpt2", values, blocks)


def translate(folder: Path, model: str = "t5", **blocks: Any) -> dict[str, Any]:
    """Translation."""
    pairs = [
        {"source": row["text"][:60], "target": row["text"][:50]} for row in tiny.lines("sentiment-tweets", limit=8)
    ]
    return _recipe(folder, "translate", model, pairs, blocks)


def _recipe(folder: Path, task: str, model: str, train: Any, blocks: dict[str, Any]) -> dict[str, Any]:
    source = {
        "task": {"name": task, "max_length": 40},
        "model": {"path": str(MADE[model])},
        "data": {
            "train": rows(folder, train) if isinstance(train, list) else str(train),
            "cache_dir": str(folder / "cache"),
        },
        "train": {"max_steps": 4},
        "output": {"dir": str(folder / "run")},
    }
    for name, block in blocks.items():
        source[name] = {**source.get(name, {}), **block} if isinstance(block, dict) else block
    return source


def yaml(folder: Path, old: str, new: str) -> str:
    """A sound recipe as a file, with one piece of text replaced."""
    text = (
        "task:\n  name: classify\n  max_length: 40\n"
        f"model:\n  path: {MADE['bert']}\n"
        f"data:\n  train: {rows(folder, tweets())}\n  cache_dir: {folder}/cache\n"
        f"train:\n  learning_rate: 2e-5\n  max_steps: 4\noutput:\n  dir: {folder}/run\n"
    )
    assert old in text
    return text.replace(old, new)


def copied(folder: Path, name: str) -> Path:
    """A model folder that may be broken."""
    return Path(shutil.copytree(MADE[name], folder / name))


# ---- the recipe file

for name, old, new, words in [
    ("a typo in a key", "learning_rate", "learning_rat", ["did you mean", "learning_rate"]),
    ("a key of another tool", "max_steps: 4", "per_device_train_batch_size: 8", ["train.batch_size"]),
    ("epochs as text", "max_steps: 4", "num_train_epochs: three", ["num_train_epochs", "number"]),
    ("2e-5 as text", "2e-5", '"2e-5"', ["learning_rate", "without quotes"]),
    ("a batch of no rows", "max_steps: 4", "batch_size: 0", ["batch_size", "positive"]),
    ("no checkpoint to be kept", "max_steps: 4", "save_total_limit: 0", ["save_total_limit", "positive"]),
    ("a negative learning rate", "2e-5", "-2e-5", ["learning_rate", "positive"]),
    ("yes for true", "max_steps: 4", "gradient_checkpointing: yes", ["gradient_checkpointing", "write true"]),
    (
        "a base recipe that is not there",
        "task:\n",
        "extends: nowhere.yaml\ntask:\n",
        ["nowhere.yaml", "does not exist"],
    ),
    ("a recipe that extends itself", "task:\n", "extends: recipe.yaml\ntask:\n", ["circle"]),
    ("a key given twice", "max_steps: 4", "max_steps: 4\n  max_steps: 5", ["max_steps", "twice"]),
    ("a tab for indentation", "  max_steps: 4", "\tmax_steps: 4", ["not YAML", "tab"]),
    ("a tag that would call a function", "max_steps: 4", "max_steps: !!python/object/apply:os.system [id]", ["tags"]),
    (
        "code allowed by the recipe",
        "max_length: 40",
        "max_length: 40\n  trust_remote_code: true",
        ["--trust-remote-code"],
    ),
    ("a secret in a path", "/run\n", "/${HF_TOKEN}\n", ["HF_TOKEN", "secret"]),
    ("a task that does not exist", "name: classify", "name: clasify", ["did you mean", "classify"]),
    ("an option of another task", "max_length: 40", "max_length: 40\n  num_beams: 4", ["num_beams", "unknown key"]),
    ("NaN for a number", "2e-5", ".nan", ["is not a number"]),
]:
    case(name, *words)(lambda folder, old=old, new=new: yaml(folder, old, new))


@case("a recipe in UTF-16", "UTF-16", "UTF-8")
def _(folder):
    return yaml(folder, "task", "task").encode("utf-16")


@case("sampling options without sampling", "temperature", "do_sample")
def _(folder):
    return translate(folder, task={"temperature": 0.7})


@case("validation twice", "validation or validation_fraction")
def _(folder):
    return classify(folder, data={"validation": rows(folder, tweets(), "v.jsonl"), "validation_fraction": 0.1})


# ---- settings against each other


@case("a metric that does not exist", "acuracy", "accuracy")
def _(folder):
    return classify(folder, eval={"metrics": ["acuracy"]})


@case("a metric for another task", "seqeval", "cannot score")
def _(folder):
    return classify(folder, eval={"metrics": ["seqeval"]})


for kind in ("regression", "multi"):

    @case(f"smoothed labels: {kind}", "train.label_smoothing_factor", "no effect", "leave out")
    def _(folder, kind=kind):
        values = [
            {**row, "label": i % 3 / 2 if kind == "regression" else [row["label"]]} for i, row in enumerate(tweets())
        ]
        return classify(folder, values, task={"kind": kind}, train={"label_smoothing_factor": 0.2})


@case("the best by a figure that two metrics give", "metric_for_best_model", "no f1", "f1:average=micro")
def _(folder):
    block = {"metrics": ["f1:average=micro", "f1:average=weighted"]}
    return classify(folder, data={"validation_fraction": 0.3}, eval=block, train={"metric_for_best_model": "f1"})


@case("the best by a figure that is not computed", "metric_for_best_model", "bleu", "it gives")
def _(folder):
    return classify(folder, data={"validation_fraction": 0.3}, train={"metric_for_best_model": "bleu"})


@case(
    "the best by a figure that is a table",
    "metric_for_best_model",
    "no checkpoint that it is better",
    "it gives accuracy",
)
def _(folder):
    best = {"metric_for_best_model": "confusion_matrix"}
    return classify(
        folder, data={"validation_fraction": 0.3}, eval={"metrics": ["accuracy", "confusion_matrix"]}, train=best
    )


@case("the best by a class that there is not", "metric_for_best_model", "no f1[xyz]", "f1[negative], f1[positive]")
def _(folder):
    return classify(folder, data={"validation_fraction": 0.3}, train={"metric_for_best_model": "f1[xyz]"})


@case("a binary average of names", "eval.metrics", "needs the class", "positive=LABEL, one of negative, positive")
def _(folder):
    return classify(folder, eval={"metrics": ["f1:average=binary"]})


for name, block, words in (
    (
        "a column given a name with a typo",
        {"columns": {"txt": "body"}},
        ("data.columns.txt", "body is not read", "is text meant?"),
    ),
    (
        "a column that the options leave unread",
        {"columns": {"text_pair": "body"}},
        ("data.columns.text_pair", "text, label"),
    ),
):

    @case(name, "reads no column", *words, warning=True)
    def _(folder, block=block):
        return classify(folder, [{**row, "body": "another text"} for row in tweets()], data=block)


@case("the best without validation", "load_best_model_at_end", "data.validation")
def _(folder):
    return classify(folder, train={"load_best_model_at_end": True})


@case("early stopping without validation", "early_stopping_patience", "data.validation")
def _(folder):
    return classify(folder, train={"early_stopping_patience": 2})


@case("warmup longer than training", "warmup_steps", "lower", warning=True)
def _(folder):
    return classify(folder, train={"warmup_steps": 500})


@case("a decay longer than training", "num_decay_steps", "lower", warning=True)
def _(folder):
    shape = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 30}}
    return classify(folder, train=shape)


@case("evaluations without rows", "train.eval_steps", "nothing is measured", "data.validation", warning=True)
def _(folder):
    return classify(folder, train={"eval_steps": 2})


@case("a run folder below a file", "output.dir", "is a file")
def _(folder):
    return classify(folder, output={"dir": f"{rows(folder, [], 'file')}/run"})


@case("a run folder that holds other files", "output.dir", "thesis.txt")
def _(folder):
    (folder / "run").mkdir()
    (folder / "run" / "thesis.txt").write_text("mine")
    return classify(folder)


@case("a cache that cannot be written", "data.cache_dir", "is a file")
def _(folder):
    return classify(folder, data={"cache_dir": f"{rows(folder, [], 'file')}/cache"})


@case("fp16 on a CPU", "fp16", "bf16")
def _(folder):
    return classify(folder, train={"precision": "fp16"})


@case("flash attention that is not installed", "model.attention", "auto")
def _(folder):
    return classify(folder, model={"attention": "flash_attention_2"})


# ---- data


def _written(name: str, content: bytes, **data: Any) -> Callable[[Path], Any]:
    """Classification of a file with this content."""

    def make(folder):
        (folder / name).write_bytes(content)
        return classify(folder, folder / name, data=data)

    return make


LINES = [json.dumps(row, ensure_ascii=False) for row in tweets()]
JSONL = "\n".join(LINES) + "\n"
CSV = "text,label\n" + "".join(f"tweet {i},{i % 2}\n" for i in range(8))
case("an empty file", "empty.jsonl", "no rows")(_written("empty.jsonl", b""))
case("a header and nothing else", "header.csv", "no rows")(_written("header.csv", b"text,label\n"))
case("semicolons in a CSV", "no column", "text;label")(_written("semi.csv", CSV.replace(",", ";").encode()))
case("data in UTF-16", "wide.jsonl", "UTF-16", "data.encoding")(_written("wide.jsonl", JSONL.encode("utf-16")))
case("data in Latin-1", "latin.jsonl:1", "0xfc", "data.encoding")(
    _written("latin.jsonl", '{"text": "für", "label": "a"}\n{"text": "b", "label": "b"}\n'.encode("latin-1"))
)
case("a gzip file cut short", "cut.jsonl.gz", "cut short")(
    _written("cut.jsonl.gz", gzip.compress(JSONL.encode())[:-20])
)
case("a gzip file without its suffix", "a gzip file", ".gz")(_written("plain.jsonl", gzip.compress(JSONL.encode())))
case("a key twice in a JSON row", "twice.jsonl:3", "'text' occurs twice")(
    _written("twice.jsonl", "\n".join([*LINES[:2], '{"text": "a", "text": "b", "label": "x"}']).encode())
)
case("broken JSON in line 5", "broken.jsonl:5", "not JSON")(
    _written("broken.jsonl", "\n".join([*LINES[:4], LINES[4][:-5], *LINES[5:]]).encode())
)
case("a row of too few fields", "short.csv:4", "fields where the header has 2")(
    _written("short.csv", CSV.replace("tweet 2,0", "tweet 2").encode())
)
case("a quote that is never closed", "quote.csv:4", "never closed", "quotes: false")(
    _written("quote.csv", CSV.replace("tweet 2", '"tweet 2').encode())
)
case("a Git LFS pointer", "Git LFS", "git lfs pull")(
    _written("lfs.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
)
case("a NUL in a text", "nul.jsonl:2", "NUL", "data.clean.control")(
    _written("nul.jsonl", f'{LINES[0]}\n{{"text": "a\\u0000b", "label": "positive"}}\n'.encode())
)
case("half of a surrogate pair", "half.jsonl:2", "surrogate")(
    _written("half.jsonl", f'{LINES[0]}\n{{"text": "a\\ud800b", "label": "positive"}}\n'.encode())
)
case("a Parquet file cut short", "cut.parquet", "not a whole Parquet file")(_written("cut.parquet", b"PAR1\x15\x00"))
case("an Excel file", "known")(_written("rows.xlsx", b"PK\x03\x04"))


@case("a file name with a typo", "data.train", "row.jsonl", "rows.jsonl")
def _(folder):
    rows(folder, tweets())
    return classify(folder, folder / "row.jsonl")


@case("a glob that matches nothing", "data.train", "*.csv")
def _(folder):
    return classify(folder, folder / "*.csv")


@case("another name of a column", "no column 'text'", "sentence", "data.columns")
def _(folder):
    return classify(folder, [{"sentence": row["text"], "label": row["label"]} for row in tweets()])


@case("a column missing in one row", "rows.jsonl:6", "label")
def _(folder):
    return classify(folder, [row if i != 5 else {"text": "x"} for i, row in enumerate(tweets())])


@case("a label that is null", "rows.jsonl:6", "'label' is null")
def _(folder):
    return classify(folder, [row if i != 5 else {**row, "label": None} for i, row in enumerate(tweets())])


@case("a label left empty in a CSV", "rows.csv:4", "'label' is empty", "on_error: skip")
def _(folder):
    lines = CSV.splitlines()
    lines[3] = "a tweet,"
    return _written("rows.csv", "\n".join(lines).encode())(folder)


@case("labels of mixed types", "rows.jsonl:6", "a number here", "text at")
def _(folder):
    return classify(folder, [row if i != 5 else {**row, "label": 1} for i, row in enumerate(tweets())])


@case("float labels for classes", "0.25", "regression")
def _(folder):
    return classify(folder, [{**row, "label": i / 4} for i, row in enumerate(tweets(), 1)])


@case("several labels where one is wanted", "rows.jsonl:1", "task.kind: multi")
def _(folder):
    return classify(folder, [{**row, "label": ["a", "b"]} for row in tweets()])


@case("a list of words where a text is wanted", "rows.jsonl:1", "'text' is a list")
def _(folder):
    return classify(folder, [{**row, "text": row["text"].split()} for row in tweets()])


@case("a label unseen in training", "held.jsonl:2", "'neutral'", "negative, positive")
def _(folder):
    held = [*tweets(1), {"text": "so so", "label": "neutral"}]
    return classify(folder, data={"validation": rows(folder, held, "held.jsonl")})


@case("only one label", "same label", "data.columns.label")
def _(folder):
    return classify(folder, [{**row, "label": "a"} for row in tweets()])


@case("-100 among the labels", "rows.jsonl:3", "-100", "drop the row")
def _(folder):
    return classify(folder, [{**row, "label": -100 if i == 2 else i % 2} for i, row in enumerate(tweets())])


@case("-100 for a number to learn", "rows.jsonl:3", "-100", "drop the row")
def _(folder):
    values = [{**row, "label": -100 if i == 2 else i} for i, row in enumerate(tweets())]
    return classify(folder, values, task={"kind": "regression"})


@case("words for a number to learn", "rows.jsonl:1", "wanted a number")
def _(folder):
    return classify(folder, task={"kind": "regression"})


@case("validation rows all blank", "blank.jsonl", "no rows")
def _(folder):
    (folder / "blank.jsonl").write_text("\n\n")
    return classify(folder, data={"validation": str(folder / "blank.jsonl")})


@case("a share of the rows that holds none out", "data.validation", "no row is left")
def _(folder):
    return classify(folder, tweets(4), data={"validation_fraction": 0.0001})


@case("every row cleaned away", "data.train", "no row is left", "12 short", "data.clean")
def _(folder):
    return classify(folder, data={"clean": {"min_chars": 10_000}})


@case("validation on the training rows", "data.validation", "occur in data.train", warning=True)
def _(folder):
    return classify(folder, data={"validation": rows(folder, tweets(), "same.jsonl")})


@case("too many broken rows to pass over", "more than 1 broken rows", "max_errors")
def _(folder):
    source = _written("broken.jsonl", "\n".join([LINES[0], "{", "{", "{", *LINES[1:]]).encode())(folder)
    source["data"] |= {"on_error": "skip", "max_errors": 1}
    return source


def tag(folder: Path, values: list[dict[str, Any]], **task: Any) -> dict[str, Any]:
    """Tagging with the tiny BERT."""
    return _recipe(folder, "tag", "bert", values, {"task": task})


PERSON = {"tokens": ["Ada", "Lovelace", "wrote"], "ner_tags": ["B-PER", "I-PER", "O"]}


@case("fewer tags than words", "rows.jsonl:2", "2 tags for 3 words")
def _(folder):
    return tag(folder, [PERSON, {**PERSON, "ner_tags": ["B-PER", "O"]}])


@case("an entity that never began", "rows.jsonl:2", "I-PER", "begin with B-", warning=True)
def _(folder):
    return tag(folder, [PERSON, {**PERSON, "ner_tags": ["O", "I-PER", "O"]}])


@case("numbers for tags without names", "rows.jsonl:1", "a number without a name", "task.label_names")
def _(folder):
    return tag(folder, [{**PERSON, "ner_tags": [1, 2, 0]}])


@case("-100 among the tags", "rows.jsonl:1", "tag -100")
def _(folder):
    return tag(folder, [{**PERSON, "ner_tags": [1, -100, 0]}], label_names=["O", "B-PER"])


@case("a stride as long as the window", "stride", "below max_length")
def _(folder):
    return tag(folder, [PERSON], stride=64, max_length=48)


def qa(folder: Path, answers: Any, **task: Any) -> dict[str, Any]:
    """Questions with the tiny BERT."""
    row = {"context": "Ada wrote the first program.", "question": "Who wrote?"}
    return _recipe(folder, "qa", "bert", [{**row, "answers": answers}], {"task": task})


@case("an answer that is not in the context", "rows.jsonl:1", "not the answer 'Bob'")
def _(folder):
    return qa(folder, {"text": ["Bob"], "answer_start": [0]})


@case("a question without an answer", "rows.jsonl:1", "task.unanswerable")
def _(folder):
    return qa(folder, {"text": [], "answer_start": []})


@case("answers as a text", "rows.jsonl:1", "answer_start")
def _(folder):
    return qa(folder, "Ada")


@case("choices counted from 1", "rows.jsonl:1", "counted from 0")
def _(folder):
    values = [{"question": "2 + 2?", "choices": ["3", "4"], "label": 2}]
    return _recipe(folder, "choice", "bert", values, {})


@case("pairs under another name", "no column 'source'", "translation")
def _(folder):
    return _recipe(folder, "translate", "t5", [{"translation": {"en": "a", "de": "b"}}], {})


# ---- prompts and conversations

TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@case("a prompt that leaves no target", "rows.jsonl:2", "nothing in this row is to be learned", "max_length")
def _(folder):
    values = [{"prompt": "a", "completion": "b"}, {"prompt": "many words " * 80, "completion": "b"}]
    return clm(folder, values, task={"kind": "prompt"})


@case("an answer of nothing", "rows.jsonl:1", "nothing in this row is to be learned")
def _(folder):
    return clm(folder, [{"prompt": "a", "completion": ""}], task={"kind": "prompt"})


@case("a conversation without the assistant", "rows.jsonl:1", "nothing in this row is to be learned")
def _(folder):
    return clm(folder, [{"messages": TALK[:1]}], task={"kind": "chat"}, tokenizer={"chat_template": TEMPLATE})


@case("no chat template", "tokenizer.chat_template", "no chat template")
def _(folder):
    return clm(folder, [{"messages": TALK}], task={"kind": "chat"})


@case("a chat template with a mistake", "chat template refuses", "rows.jsonl:1")
def _(folder):
    return clm(folder, [{"messages": TALK}], task={"kind": "chat"}, tokenizer={"chat_template": "{% for m in"})


@case("a chat template that changes the words", "changes the assistant's words", "{% generation %}")
def _(folder):
    template = TEMPLATE.replace("m.content", "m.content.upper()[:3]")
    return clm(folder, [{"messages": TALK}], task={"kind": "chat"}, tokenizer={"chat_template": template})


@case("a chat template without an end of turn", "no special token", "eos_token")
def _(folder):
    template = TEMPLATE.replace("{{ eos_token }}", "\n")
    return clm(folder, [{"messages": TALK}], task={"kind": "chat"}, tokenizer={"chat_template": template})


@case("messages without roles", "rows.jsonl:1", "role and content")
def _(folder):
    values = [{"messages": [{"from": "human", "value": "hello"}]}]
    return clm(folder, values, task={"kind": "chat"}, tokenizer={"chat_template": TEMPLATE})


# ---- models


@case("a model folder that is not there", "model.path", "no folder")
def _(folder):
    return classify(folder, model={"path": str(folder / "nowhere")})


@case("a Hub id that is not at hand", "owner/model", "HF_HUB_OFFLINE", warning=True)
def _(folder):
    return classify(folder, model={"path": "owner/model"})


@case("a model folder without config.json", "config.json", "save_pretrained")
def _(folder):
    (copied(folder, "bert") / "config.json").unlink()
    return classify(folder, model={"path": str(folder / "bert")})


@case("a model folder without weights", "model.path", "holds no weights")
def _(folder):
    (copied(folder, "bert") / "model.safetensors").unlink()
    return classify(folder, model={"path": str(folder / "bert")})


@case("weights cut short", "model.safetensors", "cut short")
def _(folder):
    file = copied(folder, "bert") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return classify(folder, model={"path": str(folder / "bert")})


@case("weights as a pickle", "pytorch_model.bin", "pickle", "safetensors")
def _(folder):
    file = copied(folder, "bert") / "model.safetensors"
    file.rename(file.with_name("pytorch_model.bin"))
    return classify(folder, model={"path": str(folder / "bert")})


@case("one file of several missing", "model-00002-of-00002.safetensors", "missing")
def _(folder):
    file = copied(folder, "bert") / "model.safetensors"
    file.rename(file.with_name("model-00001-of-00002.safetensors"))
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    file.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return classify(folder, model={"path": str(folder / "bert")})


@case("weights of another architecture", "no weight in", "config.json")
def _(folder):
    shutil.copy(MADE["gpt2"] / "model.safetensors", copied(folder, "bert") / "model.safetensors")
    return classify(folder, model={"path": str(folder / "bert")})


@case("a tokenizer folder without files", "tokenizer", "tokenizer.json")
def _(folder):
    (folder / "empty").mkdir()
    return classify(folder, tokenizer={"path": str(folder / "empty")})


@case("a tokenizer with more entries than the embedding", "entries", "embedding")
def _(folder):
    import zoo

    from hftune import tokenizer

    texts = [row["text"][:3000] for row in tiny.lines("docs-text", limit=40)]
    large = tokenizer.train(texts, "wordpiece", 700, lowercase=True, model_type="bert", max_length=64)
    assert len(large) > len(zoo.tok("bert")) + 8
    tokenizer.save(large, folder / "large")
    return classify(folder, tokenizer={"path": str(folder / "large")})


@case("rows longer than the positions", "task.max_length", "64 positions")
def _(folder):
    return classify(folder, task={"max_length": 512})


@case("targets longer than the positions", "task.max_target_length", "64 positions", "to 64 or less")
def _(folder):
    return translate(folder, "marian", task={"max_target_length": 100})


@case("prompt and target together longer than the positions", "max_length + task.max_target_length", "64 positions")
def _(folder):
    return translate(folder, "gpt2", task={"max_target_length": 40})


@case("more new tokens than positions", "task.max_new_tokens", "64 positions", "to 64 or less")
def _(folder):
    return translate(folder, "marian", task={"max_new_tokens": 100})


@case("new tokens that leave no room for a prompt", "task.max_new_tokens", "64 positions", "to 32 or less")
def _(folder):
    return clm(folder, [{"prompt": "a", "completion": "b"}], task={"kind": "prompt", "max_new_tokens": 64})


@case(
    "lengths of new weights that are longer than the positions", "max_target_length", "max_new_tokens", "48 positions"
)
def _(folder):
    block = {"init": "marian", "config": {"hidden_size": 32, "max_position_embeddings": 48}}
    made = translate(folder, "marian", task={"max_target_length": 64, "max_new_tokens": 64})
    return {**made, "model": block, "tokenizer": {"path": str(MADE["marian"])}}


@case("virtual tokens before a prompt and its target", "task.max_length + task.max_target_length", "to 40 or less")
def _(folder):
    peft = {"method": "prompt", "num_virtual_tokens": 20}
    return translate(folder, "gpt2", task={"max_length": 32, "max_target_length": 32}, peft=peft)


@case("a setting that the model does not have", "model.config.hiden_size", "hidden_size")
def _(folder):
    return classify(folder, model={"config": {"hiden_size": 64}})


@case("a setting that the weights do not fit", "model.config", "do not fit")
def _(folder):
    return classify(folder, model={"config": {"hidden_size": 64}})


@case("a width that the heads do not divide", "model.config", "multiple")
def _(folder):
    block = {"init": "bert", "config": {"hidden_size": 30, "num_attention_heads": 4}}
    return {**classify(folder, tokenizer={"path": str(MADE["bert"])}), "model": block}


@case("an architecture with a typo", "model.init", "bert")
def _(folder):
    return {**classify(folder, tokenizer={"path": str(MADE["bert"])}), "model": {"init": "brt"}}


@case("an encoder for translation", "Seq2SeqLM", "model")
def _(folder):
    return translate(folder, "bert")


@case("a decoder for masked words", "MaskedLM", "model")
def _(folder):
    return _recipe(folder, "mlm", "gpt2", [{"text": "a text"}], {})


@case("new weights without a tokenizer", "needs a tokenizer", "tokenizer.train")
def _(folder):
    return {**classify(folder), "model": {"init": "bert"}}


@case("a decoder that attends to no encoder", "model.decoder", "no attention to an encoder")
def _(folder):
    return {**translate(folder), "model": {"encoder": str(MADE["bert"]), "decoder": str(MADE["deberta-v2"])}}


@case("another number of labels than the checkpoint's", "another shape", "2 labels there, 3 in the data", warning=True)
def _(folder):
    return classify(folder, [{**row, "label": "abc"[i % 3]} for i, row in enumerate(tweets())])


@case("the checkpoint's labels in another order", "negative, positive", "positive, negative", warning=True)
def _(folder):
    return classify(folder, task={"label_names": ["positive", "negative"]})


@case("other labels than the checkpoint's, as many", "negative, positive", "bad, good", "made anew", warning=True)
def _(folder):
    return classify(folder, [{**row, "label": ("bad", "good")[i % 2]} for i, row in enumerate(tweets())])


@case("generation settings that cannot be saved", "generation settings cannot be saved", "generation_config.json")
def _(folder):
    file = copied(folder, "t5") / "generation_config.json"
    file.write_text(json.dumps({"do_sample": False, "temperature": 0.5, "num_beams": 1}))
    return translate(folder) | {"model": {"path": str(folder / "t5")}}


@case("a language that the tokenizer does not know", "task.target_lang", "de_DE")
def _(folder):
    return translate(folder, task={"target_lang": "de_DE"})


# ---- adapters


@case("a module that is not there to adapt", "peft.target_modules", "'q_proj'", "it has")
def _(folder):
    return classify(folder, peft={"method": "lora", "target_modules": ["q_proj"]})


@case("a module that is not there to save", "peft.modules_to_save", "'score'")
def _(folder):
    return classify(folder, peft={"method": "lora", "modules_to_save": ["score"]})


@case("prefix tuning where it cannot work", "peft.method", "these do")
def _(folder):
    return classify(folder, model={"path": str(MADE["deberta-v2"])}, peft={"method": "prefix"})


@case("an adapter on new weights", "peft", "model.path")
def _(folder):
    block = {"init": "bert", "config": {"hidden_size": 32}}
    return {**classify(folder, tokenizer={"path": str(MADE["bert"])}, peft={"method": "lora"}), "model": block}


@case("an adapter without its weights", "adapter", "holds no weights")
def _(folder):
    (folder / "adapter").mkdir()
    settings = {"base_model_name_or_path": str(MADE["bert"]), "peft_type": "LORA", "task_type": "SEQ_CLS"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    return classify(folder, model={"path": str(folder / "adapter")})


@case("an adapter whose model is gone", "model.path", "gone", "base_model_name_or_path")
def _(folder):
    (folder / "adapter").mkdir()
    settings = {"base_model_name_or_path": str(folder / "gone"), "peft_type": "LORA"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    return classify(folder, model={"path": str(folder / "adapter")})
