"""The recipes and the small data that come with hftune: in a clone beside the package, in a wheel inside it."""

import os
import shutil
from itertools import takewhile
from pathlib import Path

from .errors import UserError
from .folder import RECIPE, is_run

_HERE = Path(__file__).parent
ROOT = _HERE / "_shipped" if (_HERE / "_shipped").is_dir() else _HERE.parent


def recipes() -> list[tuple[str, str]]:
    """(name, what its header opens with) of every recipe."""
    folder = ROOT / "recipes"
    return [(p.relative_to(folder).with_suffix("").as_posix(), _summary(p)) for p in sorted(folder.rglob("*.yaml"))]


def _summary(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.strip("# "), lines))


def find(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        UserError: there is none of that name.
    """
    path = ROOT / "recipes" / f"{name.removeprefix('recipes/').removesuffix('.yaml')}.yaml"
    if not os.path.isfile(path):
        raise UserError(f"no recipe named {name!r}", hint="hftune recipes lists them")
    return path


def locate(name: str) -> Path:
    """A recipe by its file, a run's recipe by its folder, or a shipped one by its name.

    Raises:
        UserError: none of these.
    """
    path = Path(name)
    if os.path.isdir(path) and is_run(path):
        return path / RECIPE
    if os.path.exists(path) or (path.suffix in {".yaml", ".yml"} and os.path.isdir(path.parent)):
        return path
    return find(name)


def copy(name: str, to: Path) -> list[Path]:
    """Lay out a recipe, those that it extends, and the data that they name under `to`; existing files are kept.

    Raises:
        UserError: no such recipe, or a file of another content is in the way.
    """
    from .recipe import load

    path = find(name)
    wanted = [path.relative_to(ROOT), *(f.relative_to(ROOT) for f in _bases(path))]
    recipe = load(path)
    sources = [*(recipe.data.train or []), *(recipe.data.validation or []), *(recipe.data.test or [])]
    folders = {Path(source.path).parent for source in sources if (ROOT / source.path).is_file()}
    wanted += [
        f.relative_to(ROOT) for folder in sorted(folders) for f in sorted((ROOT / folder).iterdir()) if f.is_file()
    ]
    if folders:  # the notices go with the data
        notices = [ROOT / "data" / "PROVENANCE.md", *sorted((ROOT / "data" / "LICENSES").iterdir())]
        wanted += [file.relative_to(ROOT) for file in notices]
    made = []
    for relative in wanted:
        target, source = to / relative, ROOT / relative
        try:
            if target.exists() and target.read_bytes() != source.read_bytes():
                raise UserError(f"{target} exists with other content", hint="choose another folder with --to")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise UserError(
                f"cannot write {target}: {error.strerror}", hint="choose another folder with --to"
            ) from error
        made.append(target)
    return made


def _bases(path: Path) -> list[Path]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("extends:"):
            base = (path.parent / line.split(":", 1)[1].split("#")[0].strip().strip("'\"")).resolve()
            return [base, *_bases(base)]
    return []
