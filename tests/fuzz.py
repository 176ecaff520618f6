"""Malformed recipes and data files by the thousand, all from a seed, through `hftune check` in a warm process.

    python tests/fuzz.py recipes 10000
    python tests/fuzz.py data 2000

Recipes are the shipped ones with something done to them, data files small real rows in every format with something
done to them. What must hold: no exception but a fault of the user's, no exit status but 0 and 2, nothing above the
limit in seconds of the processor. Each case has a number: `python tests/fuzz.py recipes 1 --from 4711 --show` repeats one.
"""

import argparse
import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tiny

ROWS = 8  # of each data file
SEED = 20_251_125
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 0.5, -0.5, 1e308, 1e-300, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64, 10**30,
    "", " ", "0", "1e5", "NaN", ".inf", "null", "true", "no", "~", "x", "label", "text", "bert", "gpt2", "t5", "loss",
    [], {}, [[]], [None], [1, 2], ["a", "b"], [{}], {"a": {}}, {"path": "rows"}, {"": None}, {"a": [1, {"b": 2}]},
    "\u202egnp.exe", "\ufeff", "\u0000", "\ud800", "💥" * 40, "a" * 5000, "é" * 70, "日本語", "\x1b[31mred", "\r\n", "\t",
    "${HOME}", "${", "${HF_TOKEN}", "$(id)", "`id`", "{{ 7 * 7 }}", "{% for x in y %}", "!!python/name:os.system", "*a", "&a",
    "..", "../..", ".", "data", "data/**", "**/*", "runs", "runs/bert", "/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem",
    "~nobody", "a/b/c/d", "owner/name", "http://localhost/x", "file:///etc/passwd", "data/docs-text/train.jsonl", "%s%n", "\\", "'", '"',
]  # fmt: skip
PIECES = [
    b"&a ", b"*a", b"<<: *a\n", b"!!str ", b"!x ", b"{", b"}", b"[", b"]", b"- ", b": ", b"? ", b"| ", b"> ", b"#", b"---\n", b"...\n",
    b"%YAML 1.1\n", b"\t", b"\r", b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\x80", b"\xf0\x9f\x92\xa5",
    "\u2028".encode(), "\u0085".encode(), "\u202e".encode(), b'"', b"'", b"\\x", b'"\\ud800"', b"extends: bert.yaml\n", b"extends: .\n",
    b"~", b"null", b"1e999", b"-0", b"0x", b"0o9", b".nan", b"2001-01-01", b"1_000", b"9" * 400, b"[" * 60, b"{a: " * 60, b"- " * 60,
    b"a: &a [x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: [*c, *c, *c, *c, *c, *c, *c, *c]\n",
]  # fmt: skip


class Hang(BaseException):
    """A case took longer than the limit."""


# ---- mutations


def mangled(rng: random.Random, data: bytes, pieces: list[bytes]) -> bytes:
    """Bytes with one to three things done to them."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        near = min(len(data), a + rng.randrange(1, 12))
        lines = data.split(b"\n")
        what = rng.randrange(9)
        if what == 0:
            data = data[:a]
        elif what == 1:
            data = data[:a] + data[near:]
        elif what == 2:
            data = data[:a] + rng.choice(pieces) + data[a:]
        elif what == 3:
            data = data[:a] + rng.choice(pieces) + data[near:]
        elif what == 4 and data:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif what == 5:
            data = data[:b] + data[a:b][:2000] + data[b:]
        elif what == 6:
            rng.shuffle(lines)
            data = b"\n".join(lines)
        elif what == 7:
            at = rng.randrange(len(lines))
            lines[at] = b" " * rng.randrange(5) + lines[at].lstrip()
            data = b"\n".join(lines)
        else:
            data = data[:a] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 8))) + data[a:]
    return data


def changed(rng: random.Random, value: Any, values: list[Any]) -> Any:
    """A nested value with something in it replaced, dropped, renamed, doubled or wrapped."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        what = rng.random()
        if what < 0.08:
            return {k: v for k, v in value.items() if k != key}
        if what < 0.16:
            name = rng.choice([key[:-1], key.upper(), f"{key}s", f" {key}", "", "extends", "name", "path", key * 50])
            return {name if k == key else k: v for k, v in value.items()}
        if what < 0.22:
            return {
                **value,
                rng.choice(["extra", "path", "name", "limit", "weight", "\u202e", "a.b"]): rng.choice(values),
            }
        return {**value, key: changed(rng, value[key], values)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        made = [*value[:at], changed(rng, value[at], values), *value[at + 1 :]]
        return made * 2 if rng.random() < 0.1 else made[:-1] if rng.random() < 0.1 else made
    if rng.random() < 0.1:
        return rng.choice([[value], {"a": value}, [[value]], str(value), f"{value}{value}"])
    return rng.choice(values)


# ---- recipes


def recipes(rng: random.Random, home: Path) -> list[str]:
    """Write a malformed recipe; returns the words after `hftune check`."""
    file = home / "recipes" / "fuzzed.yaml"
    source = rng.choice(sorted(path for path in (home / "recipes").rglob("*.yaml") if path != file))
    if rng.random() < 0.5:
        file.write_bytes(mangled(rng, source.read_bytes(), PIECES))
    else:
        from hftune import yaml

        value = yaml.parse(source.read_text(encoding="utf-8"), lambda *_: "", []).plain()
        for _ in range(rng.choice((1, 1, 2, 4))):
            value = changed(rng, value, VALUES)
        file.write_text(json.dumps(value), encoding="utf-8")
    words = [str(file)]
    while rng.random() < 0.1:
        key = rng.choice(
            [
                "train.learning_rate",
                "task.max_length",
                "model.config.hidden_size",
                "data.train",
                "task",
                "a.b",
                "",
                "=",
                ".",
            ]
        )
        words.append(f"{key}={rng.choice(VALUES)}")
    return words


# ---- data


TASKS: dict[str, tuple[str, str, dict[str, Any]]] = {  # bundled set: task, model, columns
    "docs-text": ("mlm", "bert", {}),
    "sentiment-tweets": ("classify", "bert", {}),
    "address-tokens": ("tag", "bert", {}),
    "address-qa": ("qa", "bert", {}),
    "address-choice": ("choice", "bert", {}),
    "code-summary": ("summarize", "t5", {}),
    "translation-ui-en-de": ("translate", "t5", {"source": "translation.en", "target": "translation.de"}),
    "code-chat": ("clm", "gpt", {}),
}
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
}  # fmt: skip


def data(rng: random.Random, home: Path) -> list[str]:
    """Write a malformed data file and a recipe that reads it; returns the words after `hftune check`."""
    folder = rng.choice(list(TASKS))
    task, model, columns = TASKS[folder]
    rows: list[Any] = tiny.lines(folder, limit=ROWS)
    if rng.random() < 0.5:
        for _ in range(rng.choice((1, 2, 5))):
            rows = changed(rng, rows, VALUES)
            rows = rows if isinstance(rows, list) else [rows]
    suffix = rng.choice(["jsonl", "jsonl", "json", "csv", "tsv", "parquet", "txt", "md"])
    content = written(rows, suffix)
    if rng.random() < 0.6:
        content = mangled(
            rng, content, [*PIECES, b",", b";", b'""', b"\r\n", b'{"text": 1}', b"PAR1", b"\x1f\x8b", b"NA"]
        )
    if rng.random() < 0.08:
        with contextlib.suppress(UnicodeError):
            content = content.decode().encode(
                rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7"])
            )
    packing = rng.choice(["", "", "", *PACK]) if suffix != "parquet" else ""
    content = PACK[packing](content)
    if packing and rng.random() < 0.5:
        content = mangled(rng, content, PIECES)
    name = (
        f"fuzzed.{suffix}{packing}"
        if rng.random() < 0.95
        else f"fuzzed.{rng.choice(['json', 'csv', 'parquet', 'txt.gz', 'zst', 'arrow'])}"
    )
    for old in (home / "rows").iterdir():
        old.unlink()
    (home / "rows" / name).write_bytes(content)
    source: dict[str, Any] = {"path": str(home / "rows" / name)}
    if rng.random() < 0.15:
        source |= {
            rng.choice(["format", "field", "delimiter", "limit", "sample_by"]): rng.choice(
                ["json", "csv", "text", "a", ";", 1, "line"]
            )
        }
    block: dict[str, Any] = {"train": [source], "columns": columns, "cache_dir": str(home / "cache")}
    if rng.random() < 0.3:
        block |= {"on_error": "skip", "max_errors": rng.choice([0, 3, 100])}
    if rng.random() < 0.2:
        block |= {"clean": {rng.choice(["html", "control", "whitespace", "deduplicate"]): True}}
    if rng.random() < 0.1:
        block |= {"encoding": rng.choice(["utf-16", "latin-1", "cp1252", "utf-7", "ascii", "idna", "rot13", "zip"])}
    options = {"clm": {"kind": "chat"}}.get(task, {})
    recipe = {
        "task": {"name": task, "max_length": 64, **options},
        "model": {"path": f"runs/{model}"},
        "data": block,
        "output": {"dir": str(home / "out")},
    }
    if options:
        recipe["tokenizer"] = {
            "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        }
    (home / "fuzzed.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return [str(home / "fuzzed.yaml")]


def written(rows: list[Any], suffix: str) -> bytes:
    """Rows as a file of a format, or something near it where they cannot be."""
    if suffix == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    if suffix == "json":
        return json.dumps(rows, indent=1).encode()
    flat = [
        {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows if isinstance(row, dict)
    ]
    if suffix in ("csv", "tsv"):
        import csv

        out = io.StringIO()
        writer = csv.writer(out, delimiter="," if suffix == "csv" else "\t")
        writer.writerow(flat[0] if flat else [])
        writer.writerows(row.values() for row in flat)
        return out.getvalue().encode("utf-8", "surrogatepass")
    if suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        try:
            pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), sink)
        except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError):
            return b"PAR1"
        return sink.getvalue()
    return "\n\n".join(next(iter(row.values()), "") for row in flat).encode("utf-8", "surrogatepass")


# ---- the harness


def lay_out(home: Path) -> None:
    """The shipped recipes with the first rows of their data, and tiny models where they name runs."""
    import zoo

    from hftune import models, tokenizer
    from hftune.schema import Model

    shutil.copytree(tiny.ROOT / "recipes", home / "recipes")
    for file in (home / "recipes").rglob("*.yaml"):  # the runs that others start from are there already
        file.write_text(file.read_text(encoding="utf-8").replace("dir: runs/", "dir: out/"), encoding="utf-8")
    (home / "rows").mkdir()
    for path in sorted((tiny.ROOT / "data").glob("*/train.jsonl")):
        target = home / path.relative_to(tiny.ROOT).parent
        target.mkdir(parents=True, exist_ok=True)
        text = "".join(path.read_text(encoding="utf-8").splitlines(True)[:ROWS])
        for split in ("train", "validation", "test"):
            (target / f"{split}.jsonl").write_text(text, encoding="utf-8")
    for run, name, head in (("bert", "bert", zoo.MLM), ("gpt", "gpt2", zoo.CLM), ("t5", "t5", zoo.S2S)):
        size = zoo.SIZE | ({} if name == "t5" else {"max_position_embeddings": 512})
        built = models.build(Model(init=name, config=size), head, zoo.tok(name), settings={}, seed=0)
        built.model.save_pretrained(home / "runs" / run)
        tokenizer.save(zoo.tok(name), home / "runs" / run)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Hang within, once that much time of the processor has passed, or twenty times as much by the clock.

    The clock alone would blame a busy machine.
    """

    def ring(*_: Any) -> None:
        raise Hang

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 20 * seconds))
    before = [signal.signal(number, ring) for number, _, _ in timers]
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def outcome(words: list[str], seconds: float) -> tuple[str, str]:
    """What `hftune check` with these words comes to: "0", "2", "hang" or "crash"; and what was said."""
    from hftune import commands
    from hftune.errors import UserError

    said = io.StringIO()
    try:
        with limited(seconds), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            commands.check(words[0], words[1:], False, False)
    except UserError as error:
        text = str(error)
        if "\x1b" in text or "Traceback" in text:
            return "crash", f"the fault's text is not clean: {text!r}"
        return "2", text
    except SystemExit as stop:
        return str(stop.code), said.getvalue()
    except Hang:
        return "hang", traceback.format_exc()
    except BaseException:
        return "crash", traceback.format_exc()
    return "0", said.getvalue()


def run(
    kind: str, number: int, home: Path, first: int = 0, seconds: float = 5.0, show: bool = False
) -> tuple[Counter[str], list[str], float]:
    """Outcomes, what went wrong, and the longest time of a case in seconds of the processor."""
    make = {"recipes": recipes, "data": data}[kind]
    counts: Counter[str] = Counter()
    wrong, longest = [], 0.0
    for case in range(first, first + number):
        words = make(random.Random(f"{SEED} {kind} {case}"), home)
        began = time.process_time()
        found, said = outcome(words, seconds)
        longest = max(longest, time.process_time() - began)
        counts[found] += 1
        if found not in ("0", "2"):
            wrong.append(f"{kind} {case}: {found}\n{said}")
        if (case + 1) % 500 == 0 and number > 500:
            print(case + 1, dict(counts), len(wrong), f"{longest:.2f} s", flush=True)
        if show:
            print(words, found, said, sep="\n")
    return counts, wrong, longest


def main() -> int:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["recipes", "data"])
    parser.add_argument("number", type=int)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        lay_out(home)
        os.environ["HFTUNE_CACHE"] = str(home / "cache")
        os.chdir(home)
        warm = [outcome([str(path)], 600)[0] for path in sorted((home / "recipes").glob("*.yaml"))]
        counts, wrong, longest = run(given.kind, given.number, home, given.first, given.seconds, given.show)
        os.chdir("/")
    print("\n".join(wrong))
    print(f"{given.kind}: {given.number} cases, outcomes {dict(counts)}, the longest {longest:.2f} s; shipped: {warm}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
