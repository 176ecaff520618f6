"""Whether a model reads padding is found by trying it, and told."""

from dataclasses import replace

import numpy as np
import pytest
import zoo

from hftune import padding, shortcuts, steps


class Data(list):
    """Rows by number, as many positions as zoo.LENGTHS says."""

    lengths = np.array(zoo.LENGTHS)


def rows(name, head):
    """A batch of the zoo as rows; together they are padded to the longest."""
    whole = zoo.batch(name, head)

    def collate(chosen, *_):
        width = max(zoo.LENGTHS[row] for row in chosen)
        left = zoo.tok(name).padding_side == "left"
        return {
            key: (value[chosen, -width:] if left else value[chosen, :width]).numpy()
            if value.ndim == 2
            else value[chosen].numpy()
            for key, value in whole.items()
        }

    return steps.Rows(Data(range(len(zoo.LENGTHS))), replace(zoo.task(head), collate=collate), None, Options())


class Options:
    """Those of no task."""

    def at(self, done):
        return self


@pytest.mark.parametrize(
    ("name", "head", "init", "config", "counts"),
    [
        ("bert", zoo.MLM, "bert", {}, False),
        ("bert", zoo.TAG, "deberta-v2", {}, False),
        ("xlnet", zoo.TAG, "xlnet", {}, False),
        ("llama", zoo.CLASSIFY, "mixtral", {}, False),
        ("bart", zoo.S2S, "bart", {}, False),
        ("bart", zoo.S2S, "fsmt", {}, False),
        ("roberta", zoo.MLM, "esm", {}, False),
        ("roberta", zoo.TAG, "lilt", {"hidden_size": 48}, False),
        ("roberta", zoo.TAG, "markuplm", {}, False),
        (
            "roberta",
            zoo.TAG,
            "layoutlmv3",
            {"hidden_size": 48, "coordinate_size": 8, "shape_size": 8, "visual_embed": False},
            False,
        ),
        ("bert", zoo.MLM, "convbert", {"embedding_size": 32}, True),
        ("bert", zoo.TAG, "funnel", {"block_sizes": [1, 1], "d_head": 16, "n_head": 2}, True),
        ("bert", zoo.MLM, "fnet", {}, True),
    ],
)
def test_padding_counts_only_where_it_does(name, head, init, config, counts):
    size = {key: value for key, value in zoo.SIZE.items() if init != "fnet" or key != "num_attention_heads"}
    if init == "funnel":
        size = {"d_model": 32, "d_inner": 64, "num_decoder_layers": 1}
    model = zoo.build(name, head, init=init, config={**size, **config}).model.train()
    assert padding.reads(model, rows(name, head), shortcuts.NONE) == counts
    assert bool(padding.told(model, rows(name, head), shortcuts.NONE)) == counts
    assert model.training


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_no_architecture_of_the_table_reads_padding(name):
    """So it is not tried at the start of each run."""
    head = zoo.HEADS[name][0]
    assert not padding.reads(zoo.build(name, head).model, rows(name, head), shortcuts.NONE)
