"""A finished run to the Hub: what others need to use the model, and nothing of the text that it was trained on."""

from pathlib import Path
from typing import Any

from . import hub
from .errors import UserError
from .folder import CHECKPOINTS, MERGED, METRICS, RECIPE
from .tokenizer import FILES

# What goes; all else that may lie in a run's folder stays: checkpoints, predictions and pages, which show the data, whatever
# a person put there, what tells of this machine, results of other rows, and the base's weights that an adapter was merged with
MODEL = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", hub.ADAPTER, "*.py")
TOLD = ("README.md", "LICENSE*", "NOTICE*", RECIPE, METRICS)
NAMES = (*MODEL, *sorted(FILES), "*.spm", "*.model", *TOLD)
SENT = [*NAMES, *(f"*/{name}" for name in NAMES if name not in TOLD)]
KEPT_HERE = [f"{CHECKPOINTS}/*", f"{MERGED}/*", ".*", "*/.*"]


def push(path: Path, name: str, *, public: bool = False) -> str:
    """Upload what of a run folder is SENT, and not KEPT_HERE, in one commit.

    Args:
        path: the run folder.
        name: `owner/name` on the Hub; made where it is not there yet.
        public: whether all may see it.

    Returns:
        Address of the commit.

    Raises:
        UserError: the run has no model yet or is an adapter of one that lies here alone, there is no token, the repository
            is there already and seen by others than was asked for, or the Hub refuses or cannot be reached.
    """
    adapter = hub.adapter(str(path))
    if not (path / "config.json").is_file() and not adapter:
        raise UserError(
            f"{path} is not finished: it has no model yet", hint="start its command again: it resumes where it stopped"
        )
    if adapter and Path(adapter["base_model_name_or_path"]).is_absolute():
        raise UserError(
            f"{path} is an adapter of {adapter['base_model_name_or_path']}, which nobody else has",
            hint=f"hftune merge {path}, then hf upload {name} {path / MERGED} --private; or train it from the name of its base "
            "on the Hub",
        )
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"{name} is no name on the Hub", hint="write owner/name")
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise UserError("there is no token for the Hub", hint="log in once with: hf auth login")
    if not hub.answers():
        raise UserError("the Hub cannot be reached", hint="try again where there is a network, without HF_HUB_OFFLINE")
    api = HfApi(library_name="hftune")
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        there = api.repo_info(name)
        if bool(there.private) == public:
            raise UserError(
                f"{name} is there already, and {'private' if public else 'public'}: nothing was sent",
                hint=f"push with{'out' if public else ''} --public if that is meant, or to another name",
            )
        made: Any = api.upload_folder(
            repo_id=name, folder_path=path, allow_patterns=SENT, ignore_patterns=KEPT_HERE,
            commit_message=f"{path.resolve().name}, trained by hftune",
        )  # fmt: skip
    except UserError:
        raise
    except Exception as error:  # the Hub's client lets through whatever its transport raises
        raise UserError(
            f"the Hub did not take {path} as {name}: {hub.first_line(error)}",
            hint="check the network, the name, and that the token may write to it",
        ) from error
    return str(made.commit_url)
