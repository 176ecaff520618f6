"""`hftune generate`: a finished run writes, and each token is shown as it comes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from . import decode, finished, predicting, subject
from . import task as tasks
from .errors import UserError
from .recipe import Recipe
from .report import SILENT, Reporter
from .schema import Source
from .task import Options


def check(path: Path, recipe: Recipe) -> None:
    """That the task of a run writes text for a prompt.

    Raises:
        UserError: it does not, or a row of it needs more than a text.
    """
    options = cast(Options, recipe.task.options).predicting()
    wanted = tasks.load(recipe.task.name).under(options).inputs_only(options)
    if not isinstance(options, decode.Decoding) or len(wanted) != 1:
        hint = f"hftune predict {path} FILE"
        raise UserError(f"the task {recipe.task.name} writes no text for a prompt", hint=hint, where="task.name")


def generate(
    path: Path,
    recipe: Recipe,
    prompt: str,
    show: Callable[[int, str], None],
    reporter: Reporter = SILENT,
    *,
    trust_remote_code: bool = False,
) -> tuple[list[str], bool]:
    """Texts of a run for one prompt, and whether it was too long, so that some of it is not seen.

    Args:
        path: folder of a finished run.
        recipe: its recipe; the task's options say how to generate.
        prompt: what a row to be predicted holds: text to go on with, to translate, a question, ...
        show: called with the number of a text and its next few characters; for beams once, with the whole.
        reporter: told what is to be known of the model.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        UserError: the run is not finished; see also `check`.
    """
    check(path, recipe)
    prepared, model = finished.ready(path, recipe, reporter, trust_remote_code=trust_remote_code)
    wanted = prepared.task.inputs_only(prepared.options)
    typed = subject.like_training(recipe.data, Source(path=subject.TYPED))
    row = predicting.asked({wanted[0]: prompt}, wanted, recipe.data.clean, "the prompt", typed.prefix)
    streams: list[Stream] = []

    def watch(_: int, text: int, id: int) -> None:
        while len(streams) <= text:  # one before it may have ended before it began
            finish()
            streams.append(Stream(prepared.tokenizer))
        show(text, streams[-1](id))

    def finish() -> None:
        if streams:
            show(len(streams) - 1, streams[-1].rest())

    with decode.streaming(watch):
        [answer], cut = predicting.predict(model, prepared, [row], recipe.eval.batch_tokens)
    finish()
    texts = list(answer.get("predictions", [answer["prediction"]]))
    for number in range(len(streams), len(texts)):  # beams
        show(number, texts[number])
    return texts, cut > 0


class Stream:
    """Ids to text, each as soon as what it stands for cannot change: bytes of a character wait for the last of them.

    So do the last two words where the tokenizer takes spaces away ("do n ' t", "end .").
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, id: int) -> str:
        """The text that has become certain."""
        self.ids.append(id)
        text = self._text()
        if text.endswith("\ufffd"):
            return ""
        if self.tokenizer.clean_up_tokenization_spaces:
            text = " ".join(text.rstrip().split(" ")[:-2])
        return self._show(text)

    def rest(self) -> str:
        """What has not been shown."""
        return self._show(self._text())

    def _show(self, text: str) -> str:
        new = text[len(self.shown) :]
        self.shown += new
        return new

    def _text(self) -> str:
        text: str = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        return text
