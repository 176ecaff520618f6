"""Peak memory of `hftune eval` on a masked LM with a vocabulary of 30,522, by number of rows: it must stay flat.

Each measurement is a process of its own with an empty cache, so that reading and encoding the rows count too. The rows are
different pieces of 400 characters of data/docs-text, cut at drawn places, and each file is the beginning of the next: the
500 have rows of the full 128 tokens already, so that the largest batch is the same at every size. The model is a small BERT
of new weights. The matrix product is said, since the clock would choose another one now and then.

    python benchmarks/eval_memory.py [ROWS ...]
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SIZES = (500, 2000, 10_000)
CONFIG = {
    "vocab_size": 30522,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
}


def prepare(folder: Path, sizes: list[int]) -> None:
    """The model, and a file of rows for each size."""
    from transformers import BertConfig, BertForMaskedLM

    from hftune import tokenizer

    texts = [json.loads(line)["text"] for line in (ROOT / "data/docs-text/train.jsonl").open(encoding="utf-8")]
    made = tokenizer.train(texts[:200], "wordpiece", 4000, lowercase=True, model_type="bert", max_length=128)
    tokenizer.save(made, folder / "model")
    BertForMaskedLM(BertConfig(**CONFIG)).save_pretrained(folder / "model")
    rng, whole = random.Random(0), "\n".join(texts)
    places = [rng.randrange(len(whole) - 400) for _ in range(max(sizes))]
    for size in sizes:
        with (folder / f"{size}.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps({"text": whole[at : at + 400]}) + "\n" for at in places[:size])


def measure(folder: Path, size: int) -> tuple[float, float]:
    """Peak resident memory in MiB, and CPU-seconds."""
    words = ["eval", "model", "--task", "mlm", "--data", f"{size}.jsonl", "--json", "task.max_length=128"]
    words.append("train.matmul=highest")
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HFTUNE_CACHE": str(folder / f"cache-{size}"),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with (folder / "out.json").open("w") as out, (folder / "err.txt").open("w") as err:
        child = subprocess.Popen(
            [sys.executable, "-m", "hftune", *words], cwd=folder, env=environment, stdout=out, stderr=err
        )
        _, status, used = os.wait4(child.pid, 0)
    assert status == 0, (folder / "err.txt").read_text()
    return used.ru_maxrss / 1024, used.ru_utime + used.ru_stime


def main(sizes: list[int]) -> None:
    """Print a line a size."""
    first = None
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), sizes)
        for size in sizes:
            peak, seconds = measure(Path(name), size)
            first = first or peak
            print(
                f"{size:>7,} rows  peak {peak:7.1f} MiB ({peak / first - 1:+.1%})  {seconds:6.1f} CPU-seconds",
                flush=True,
            )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or list(SIZES))
