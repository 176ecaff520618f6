"""Losses: logits only where a label is, and the sums that make a step's loss exact.

Every loss here is a sum over targets. What it is divided by, the number of targets of the whole step, is known
before any forward (loop.train_step), so a step has the same gradients however it is cut.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .labelled import places, taken
from .task import IGNORE, Task

SHAPES = 32  # rows of a chunk come in multiples of this: see arrays.width
WRAPPED = ("module", "_orig_mod")  # where DDP and its like, and torch.compile, keep what they wrap
CHUNK = 2**23  # logits held at once (32 MB in float32); no figure depends on it
BLOCK = 1024  # entries of the vocabulary multiplied at once: their weights stay in the cache
ALIGNED = 64  # numbers: rows of logits begin at multiples of this


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of `hidden @ weight.T + bias`, a chunk of rows at a time, gradients on the way.

    No [N, V] matrix ever exists: each chunk's softmax is turned into its gradient in place and multiplied out at
    once, so the head costs its three matrix products and nothing else.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        smoothing: float,
        factor: Tensor,
    ) -> Tensor:
        rows, vocabulary = len(hidden_NH), len(weight_VH)
        need_hidden, need_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        need_bias = bias_V is not None and ctx.needs_input_grad[2]
        d_hidden = torch.empty_like(hidden_NH) if need_hidden else None
        d_weight: Tensor | None = None
        d_bias = torch.zeros_like(bias_V) if need_bias and bias_V is not None else None
        total = torch.zeros(
            (), dtype=torch.float64 if hidden_NH.device.type != "mps" else torch.float32, device=hidden_NH.device
        )
        step = max(1, CHUNK // vocabulary // SHAPES) * SHAPES
        room = _room(hidden_NH, weight_VH, min(step, rows))
        late = False
        for at in range(0, rows, step):
            hidden, labels = hidden_NH[at : at + step], labels_N[at : at + step, None]
            real = len(hidden)
            if extra := -real % SHAPES:
                hidden, labels = F.pad(hidden, (0, 0, 0, extra)), F.pad(labels, (0, 0, 0, extra))
            logits = _logits(hidden, weight_VH, bias_V, room)
            losses, probabilities = _cross_entropy(logits, labels, smoothing)
            total += losses[:real].sum(dtype=total.dtype)
            if not (need_hidden or need_weight or need_bias):
                continue
            # gradient of the loss by the logits, written over the probabilities (Szegedy et al. 2016, section 7)
            if smoothing:
                probabilities -= smoothing / vocabulary
            probabilities.scatter_add_(1, labels, probabilities.new_full((1, 1), smoothing - 1).expand(len(labels), 1))
            probabilities[real:] = 0
            if d_bias is not None:
                d_bias += probabilities.sum(0)
            gradient = probabilities.to(logits.dtype)
            # half precision loses gradients that the loss's scale has not reached yet
            late = gradient.dtype == torch.float16
            if d_hidden is not None:
                d_hidden[at : at + step] = (gradient @ weight_VH)[:real]
            if need_weight:
                # the factor goes where it is cheap: H columns, not the V of the gradient
                hidden = hidden if late else hidden * factor
                exact = gradient.dtype == weight_VH.dtype == hidden.dtype
                if d_weight is None:  # nothing to add to: a pass of zeros over V x H spared
                    d_weight = (gradient.T @ hidden).to(weight_VH.dtype)
                elif exact and not torch.is_autocast_enabled(hidden.device.type):
                    d_weight.addmm_(gradient.T, hidden)
                else:
                    d_weight += gradient.T @ hidden
        if need_weight and d_weight is None:
            d_weight = torch.zeros_like(weight_VH)
        if d_hidden is not None and not late:
            d_hidden *= factor
        if d_bias is not None and not late:
            d_bias *= factor
        ctx.gradients, ctx.factor = [d_hidden, d_weight, d_bias], factor if late else None
        return (total * factor).to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (upstream,) = grads
        upstream = upstream if ctx.factor is None else upstream * ctx.factor
        on_cpu_one = upstream.device.type == "cpu" and upstream.item() == 1.0  # a pass over V x H saved
        # given away, not kept: a weight that is also the embedding gets its other gradient added in place
        kept, ctx.gradients = ctx.gradients, None
        scaled = [g if g is None or on_cpu_one else g * upstream.to(g.dtype) for g in kept]
        return (*scaled, None, None, None)


def _room(hidden_NH: Tensor, weight_VH: Tensor, rows: int) -> Tensor | None:
    """Where the logits of each chunk are written, one after the other: fresh memory costs as much as a pass over it.

    On a CPU rows begin at multiples of 64 numbers: matrix products into and from rows that lie askew are up to twice as
    slow (benchmarks/NOTES.md). None: wherever the product puts them.
    """
    plain = hidden_NH.dtype == weight_VH.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if hidden_NH.device.type != "cpu" or not plain:
        return None
    return hidden_NH.new_empty(-(-rows // SHAPES) * SHAPES, -(-len(weight_VH) // ALIGNED) * ALIGNED)


def _logits(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, room: Tensor | None) -> Tensor:
    """Logits [N, V] of a chunk, in the room if there is one, with -inf behind each row; no gradient."""
    if room is None:
        return F.linear(hidden_NH, weight_VH, bias_V)
    vocabulary = len(weight_VH)
    room[:, vocabulary:] = -torch.inf
    logits = room[: len(hidden_NH), :vocabulary]
    with torch.no_grad():
        for at in range(0, vocabulary, BLOCK):
            part = slice(at, at + BLOCK)
            if bias_V is None:
                torch.mm(hidden_NH, weight_VH[part].T, out=logits[:, part])
            else:
                torch.addmm(bias_V[part], hidden_NH, weight_VH[part].T, out=logits[:, part])
    return logits


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities in the place of the logits; of rows with room behind them, the whole, which are one block."""
    if logits.device.type != "cpu":
        return logits.softmax(1)
    whole = logits.as_strided((len(logits), logits.stride(0)), logits.stride())
    return torch.softmax(whole, 1, out=whole)[:, : logits.shape[1]]


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Per-row losses [N] and probabilities [N, V], in float32 at least, the latter in the place of the logits; labels [N, 1].

    The norm is the largest logit less its log-probability: one pass of softmax gives both, and no exponential is computed
    twice. (To ask where the largest stands takes longer than to look for it twice.)
    """
    logits = _precise(logits)
    top = logits.amax(1, keepdim=True)
    target = logits.gather(1, labels)
    if smoothing:
        target = (1 - smoothing) * target + smoothing * logits.mean(1, keepdim=True)
    probabilities = _softmax(logits)
    log_norm = top - probabilities.amax(1, keepdim=True).log()
    return (log_norm - target).squeeze(1), probabilities


@dataclass
class Losses:
    """Losses of one term on one batch: `total`, already times its factor, to train on; `rows` to evaluate by.

    Attributes:
        total: scalar, weight * sum / count where the criterion has a factor for the term, else the plain sum.
        rows: float64 [B], the plain sum of each row; only where the criterion was asked for rows.
    """

    total: Tensor
    rows: Tensor | None = None


@dataclass
class Criterion:
    """How losses are summed: for training (`factors` given) or row by row for evaluation (`by_row`).

    Attributes:
        factors: term name -> scalar tensor, weight over the number of targets of the whole step.
        smoothing: label smoothing, training only.
        by_row: give each row's sum.
        head: "fused", "kept" or "full", see shortcuts.Shortcuts.
    """

    factors: dict[str, Tensor] = field(default_factory=dict)
    smoothing: float = 0.0
    by_row: bool = False
    head: str = "fused"

    def tokens(
        self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor, term: str = "loss"
    ) -> tuple[Any, Losses]:
        """Run a model with a vocabulary head and give (outputs, losses), computing logits at labelled positions only.

        Args:
            model: the model, wrapped or not.
            inputs: its inputs, without labels.
            labels: int64 [B, T], what the output at each position must be; -100 where the loss does not look.
            term: name of the loss's term.
        """
        core = unwrap(model)
        decoder = core.get_output_embeddings()
        targets = taken(labels, labels)
        if self.head == "full":
            outputs = model(**inputs)
            logits = _at_labels(vocabulary(outputs), labels)
            return outputs, self._reduce(F.cross_entropy, _precise(logits), targets, labels, term)
        if self.head == "kept":

            def rounded(hidden: Tensor) -> Tensor:
                found = _at_labels(hidden, labels)
                return F.pad(found, (0, 0, 0, -len(found) % SHAPES))

            with before(decoder, rounded):
                outputs = model(**inputs)
            logits = vocabulary(outputs)[: len(targets)]
            return outputs, self._reduce(F.cross_entropy, _precise(logits), targets, labels, term)
        seen: list[Tensor] = []

        def take(hidden: Tensor) -> Tensor:
            seen.append(_at_labels(hidden, labels))
            return hidden[..., :0, :]  # the decoder still runs, on nothing

        with before(decoder, take):
            outputs = model(**inputs)
        bias = getattr(decoder, "bias", None)
        offset = getattr(core, "final_logits_bias", None)
        if offset is not None:
            bias = offset[0] if bias is None else bias + offset[0]
        if self.by_row:
            return outputs, self._rows(_token_losses(seen[0], decoder.weight, bias, targets), labels)
        factor = self.factors.get(term, torch.ones((), device=targets.device))
        weight = decoder.weight
        if not torch.is_grad_enabled():  # a Function computes gradients for whatever may need some
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        return outputs, Losses(
            _LinearCrossEntropy.apply(seen[0], weight, bias, targets, self.smoothing, factor)  # type: ignore[no-untyped-call]
        )

    def logits(
        self,
        logits: Tensor,
        labels: Tensor,
        term: str = "loss",
        problem: str | None = None,
        weight: Tensor | None = None,
    ) -> Losses:
        """Losses of logits at hand.

        Whole-number labels [...] of logits [..., C] are classes (cross-entropy, with `weight` [C] if given); labels of
        floating point are targets: of binary cross-entropy if `problem` is "multi_label_classification", else of
        squared error. -100 is ignored throughout. A logit of -inf is a class that the row does not have.
        """
        if labels.is_floating_point():
            function = F.binary_cross_entropy_with_logits if problem == "multi_label_classification" else F.mse_loss
            outputs = taken(logits.reshape(labels.shape), labels).float()
            return self._reduce(function, outputs, taken(labels, labels).float(), labels, term)
        chosen, targets = taken(logits, labels).float(), taken(labels, labels)
        if self.smoothing and not self.by_row and weight is None:  # torch's own smoothing knows of no absent class
            return self._reduce(partial(_smoothed, smoothing=self.smoothing), chosen, targets, labels, term)
        return self._reduce(F.cross_entropy, chosen, targets, labels, term, weight)

    def _reduce(
        self,
        function: Callable[..., Tensor],
        outputs: Tensor,
        targets: Tensor,
        labels: Tensor,
        term: str,
        weight: Tensor | None = None,
    ) -> Losses:
        more: dict[str, Any] = {}
        if function is F.cross_entropy:
            more = {"weight": weight, "label_smoothing": 0.0 if self.by_row else self.smoothing}
        losses = function(outputs, targets, reduction="none", **more)
        return self._rows(losses, labels) if self.by_row else Losses(losses.sum() * self.factors.get(term, 1.0))

    @staticmethod
    def _rows(losses: Tensor, labels: Tensor) -> Losses:
        row = places(labels) // labels[0].numel()
        losses = losses.double()
        return Losses(
            losses.sum(), torch.zeros(len(labels), dtype=losses.dtype, device=losses.device).index_add_(0, row, losses)
        )


def _smoothed(logits: Tensor, labels: Tensor, *, smoothing: float, reduction: str) -> Tensor:
    """Cross-entropy [N] with label smoothing over the classes whose logit is not -inf (torch's own would be infinite)."""
    log_probabilities = logits.log_softmax(-1)
    there = torch.isfinite(logits)
    uniform = log_probabilities.masked_fill(~there, 0).sum(-1) / there.sum(-1)
    return -(1 - smoothing) * log_probabilities.gather(-1, labels[:, None]).squeeze(-1) - smoothing * uniform


def vocabulary(outputs: Any) -> Tensor:
    """Logits over the vocabulary; models with two heads call them `prediction_logits`."""
    logits: Tensor = outputs.logits if hasattr(outputs, "logits") else outputs.prediction_logits
    return logits


def _precise(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _at_labels(values: Tensor, labels: Tensor) -> Tensor:
    """Of values [B, T, *] those where labels [B, T] are: [N, *]. Virtual tokens, where an adapter puts some, stand before the text.

    What positions.only gives begins with them: values [1, M, *].
    """
    if len(values) < len(labels) or values.shape[1] < labels.shape[1]:
        return values[0, : len(places(labels))]
    return taken(values[:, -labels.shape[1] :] if labels.shape[1] else values, labels)


def _token_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Cross-entropy of each row [N], a chunk of logits at a time, of few shapes; no gradient."""
    extra, step = -len(hidden) % SHAPES, max(1, CHUNK // len(weight) // SHAPES) * SHAPES
    rows, wanted = F.pad(hidden, (0, 0, 0, extra)), F.pad(labels, (0, extra))[:, None]
    room = _room(rows, weight, min(step, len(rows)))
    parts = [
        _cross_entropy(_logits(rows[at : at + step], weight, bias, room), wanted[at : at + step], 0.0)[0]
        for at in range(0, len(rows), step)
    ]
    return torch.cat(parts)[: len(hidden)] if parts else hidden.new_zeros(0, dtype=torch.float32)


@contextmanager
def before(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, the module's input goes through `change`."""
    handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def compiled(model: nn.Module) -> Any:
    """The model under torch.compile, in a few versions for batches of all sizes.

    What `before` hands to a module, torch counts among the module's own, whose sizes it takes never to change: it would
    compile anew for each number of labels, and give up after eight.
    """
    import torch._dynamo

    torch._dynamo.config.force_nn_module_property_static_shapes = False
    return torch.compile(model)


@contextmanager
def without_vocabulary(model: nn.Module) -> Iterator[None]:
    """Within, the vocabulary head computes nothing: for whoever needs the model's other outputs alone."""
    with before(unwrap(model).get_output_embeddings(), lambda hidden: hidden[..., :0, :]):
        yield


@contextmanager
def once(model: nn.Module) -> Iterator[None]:
    """Within, a call with the very tensors of the call before gives its outputs again.

    Where there is a vocabulary head, what it computes depends on who asks: then every call is computed.
    """
    if unwrap(model).get_output_embeddings() is not None:
        yield
        return
    before, forward = model.__dict__.get("forward"), model.forward
    last: list[Any] = [None, None]

    def remembering(*args: Any, **inputs: Any) -> Any:
        if (
            args
            or last[0] is None
            or inputs.keys() != last[0].keys()
            or any(inputs[k] is not last[0][k] for k in inputs)
        ):
            last[:] = inputs, forward(*args, **inputs)
        return last[1]

    model.forward = remembering
    try:
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside DDP, torch.compile and PEFT wrappers.

    accelerate's function of this name walks all modules and looks for packages on disk at each call: a tenth of the time
    of a small model's step.
    """
    inner: Any = model
    while wrapped := next((inner._modules[name] for name in WRAPPED if name in inner._modules), None):
        inner = wrapped
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def model_inputs(model: nn.Module, batch: dict[str, Tensor], task: Task) -> dict[str, Any]:
    """The batch without its labels, which the loss keeps to itself; the decoder's inputs are made from them.

    No cache is asked for: a loss needs none, and with one transformers sees rows of packed texts as one text.
    """
    inputs: dict[str, Any] = {k: v for k, v in batch.items() if k not in {term.labels for term in task.terms}}
    core = unwrap(model)
    made = (
        core.config.is_encoder_decoder
        and "decoder_input_ids" not in inputs
        and core.get_output_embeddings() is not None
    )
    if made:
        inputs["decoder_input_ids"] = decoder_inputs(core, batch["labels"])
    return {**inputs, **no_cache(core.__class__)}


@cache
def no_cache(kind: type) -> dict[str, bool]:
    """What tells a model of that class to keep no cache, if it can."""
    return {"use_cache": False} if "use_cache" in inspect.signature(kind.forward).parameters else {}  # type: ignore[attr-defined]


def decoder_inputs(core: Any, labels: Tensor) -> Tensor:
    """What the decoder of a model without wrappers reads so as to write labels [B, T]; rows may have none (see Rows.silent)."""
    shift = getattr(core, "prepare_decoder_input_ids_from_labels", None) or partial(_shift_right, core.config)
    silent = (labels == IGNORE).all(1)
    stand_in = 0 if core.config.pad_token_id else 1  # mBART begins with a row's last label, and breaks down without
    labels = torch.cat([labels[:, :1].masked_fill(silent[:, None], stand_in), labels[:, 1:]], 1)
    found: Tensor = shift(labels=labels)
    return found


def _shift_right(config: Any, labels: Tensor) -> Tensor:
    """The decoder's inputs: its start token, then the labels but the last, padding where the loss does not look."""
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], 1)
    return shifted.masked_fill(shifted == IGNORE, config.pad_token_id)


def losses(
    model: nn.Module, batch: dict[str, Tensor], task: Task, options: Any, criterion: Criterion
) -> dict[str, Losses]:
    """The losses of a batch by term: the task's own `loss`, or that of its head."""
    if task.loss is not None:
        own: dict[str, Losses] = task.loss(model, batch, options, criterion)
        return own
    term = task.terms[0]
    inputs, labels = model_inputs(model, batch, task), batch[term.labels]
    core = unwrap(model)
    if core.get_output_embeddings() is not None:
        return {term.name: criterion.tokens(model, inputs, labels, term.name)[1]}
    problem = core.config.problem_type
    return {term.name: criterion.logits(model(**inputs).logits, labels, term.name, problem)}
