"""The model card: README.md of a run, with the metadata that the Hub reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import hub
from .files import read_json
from .folder import METRICS, RECIPE, STATE, older_model
from .recipe import Recipe
from .report import duration, fixed, readable
from .safety import markdown


def write(path: Path, recipe: Recipe, model_type: str, state: Mapping[str, Any] | None = None) -> None:
    """Write README.md from what the run folder says; a card that a person wrote is left alone.

    Args:
        path: the run folder.
        recipe: the recipe as resolved.
        model_type: name of the architecture.
        state: what run.json is about to say; default: what it says.
    """
    from huggingface_hub import EvalResult, ModelCardData

    card, title = path / "README.md", path.resolve().name  # also of a folder that is given as "."
    if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        return
    figures, state = readable(read_json(path / METRICS)), read_json(path / STATE) if state is None else state
    shown = {name: f for name, f in figures.items() if isinstance(f, dict) and isinstance(f.get("value"), (int, float))}
    sources = ", ".join(source.path for source in recipe.data.train or [])
    results = [
        EvalResult(
            task_type=recipe.task.name,
            dataset_type="local",
            dataset_name=_measured_on(recipe, figure.get("split", "validation")) or sources or "unknown",
            dataset_split=figure.get("split"),
            metric_type=name,
            metric_value=figure["value"],
        )
        for name, figure in shown.items()
        if "[" not in name and "note" not in figure  # what needs one, such as a floor, is no result of the model
    ]
    adapted = hub.adapter(str(path)) is not None
    metadata = ModelCardData(
        library_name="peft" if adapted else "transformers", tags=["hftune", recipe.task.name, model_type], base_model=_hub_id(recipe.model.path, state), model_name=title,
        eval_results=results or None,
    )  # fmt: skip
    rows = [
        f"| {markdown(_called(name, figure))} | {fixed(figure['value'])} | {_interval(figure)} | {figure.get('count', '')} | {figure.get('split', '')} |"
        for name, figure in shown.items()
    ]
    older, tokens, spent = older_model(state), state.get("tokens", 0), duration(state.get("training_seconds", 0))
    hardware = state.get("hardware", {})
    machine = (
        f"{hardware.get('cores')} cores ({hardware.get('processor')})"
        if not hardware.get("gpus")
        else ", ".join(hardware["gpus"])
    )
    text = [
        f"---\n{metadata.to_yaml()}\n---",
        MARK,
        f"# {markdown(title)}",
        f"This {model_type} model was trained by hftune {state.get('versions', {}).get('hftune', '')} for the task {markdown(recipe.task.name)} on {markdown(sources)}.",
        *([ADAPTER] if adapted else []),
        "## Figures",
        "| figure | value | interval | rows or targets | split |\n|---|---|---|---|---|\n" + "\n".join(rows)
        if rows
        else "No evaluation was made.",
        "## Training",
        f"The run was {older}."
        if older
        else f"{state.get('step', 0):,} steps, {tokens:,} tokens in {spent} on {machine}.",
        f"`hftune {'pretrain' if recipe.model.init else 'finetune'} recipe.yaml` repeats it with this recipe:",
        f"```yaml\n{(path / RECIPE).read_text(encoding='utf-8')}```",
    ]
    card.write_text("\n\n".join(text) + "\n", encoding="utf-8")


ADAPTER = (
    "It is an adapter, which is loaded onto the model that it changes; `hftune merge` makes a plain model of the two."
)
MARK = "<!-- written by hftune; a card without this line is left alone -->"


def _measured_on(recipe: Recipe, split: str) -> str:
    name = split.partition("[")[0]
    found = getattr(recipe.data, name) if name in ("train", "validation", "test") else None
    return ", ".join(source.path for source in found or [])


def _called(name: str, figure: dict[str, Any]) -> str:
    return f"{name}: {figure['note']}" if "note" in figure else name


def _interval(figure: dict[str, Any]) -> str:
    low, high = figure.get("low"), figure.get("high")
    return f"{fixed(low)} to {fixed(high)}" if isinstance(low, (int, float)) and isinstance(high, (int, float)) else ""


def _hub_id(path: str | None, state: Mapping[str, Any]) -> str | None:
    """A model's name on the Hub; a local path, as it was where the run was started, is nobody else's business."""
    if not path or path.count("/") > 1 or path.startswith((".", "~", "/")):
        return None
    if "commits" in state:  # what came from the Hub, whatever lies here by now
        return path if path in state["commits"] else None
    return None if any((Path(place) / path).exists() for place in ("", state.get("directory", ""))) else path
