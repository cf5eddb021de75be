"""Whether Weights & Biases can be used from here, without asking it: which mode is meant, and whether there is a key."""

import os
import re
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from fat_ray.errors import OutputError

Mode = Literal["offline", "online", "disabled"]

KEY_CHARACTERS = 40
_DEFAULT_URL = "https://api.wandb.ai"
_HOW = "run `wandb login`, or set WANDB_API_KEY"


def has_key(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether Weights & Biases would find a key: in the environment or in the netrc file. The key itself is not looked at."""
    if environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(base_url(environ)).hostname or ""
    path = Path(environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc(path).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def base_url(environ: Mapping[str, str] = os.environ) -> str:
    """The server that is meant."""
    return environ.get("WANDB_BASE_URL") or _DEFAULT_URL


def resolve_mode(asked: str, environ: Mapping[str, str] = os.environ) -> Mode:
    """The mode; ``auto`` is what WANDB_MODE says, or else online where there is a key, and offline where there is none."""
    if asked != "auto":
        return _known(asked)
    said = environ.get("WANDB_MODE", "")
    if said in ("offline", "online", "disabled"):
        return _known(said)
    return "online" if has_key(environ) else "offline"


def _known(mode: str) -> Mode:
    return "online" if mode == "online" else "offline" if mode == "offline" else "disabled"


def check_key(purpose: str, otherwise: str = "", environ: Mapping[str, str] = os.environ) -> None:
    """Makes sure that there is a key, and that it can be one. Whether the server knows it is not asked.

    Args:
        purpose: What it is needed for, for the message.
        otherwise: What to do without a key, for the message.
        environ: Environment variables.

    Raises:
        OutputError: There is none, or what is there is none.
    """
    if not has_key(environ):
        raise OutputError(f"{purpose} needs a W&B key: {_HOW}{f', or {otherwise}' if otherwise else ''}")
    secret = environ.get("WANDB_API_KEY", "").split("-", 1)[-1]
    if secret and secret.count(".") != 2 and (len(secret) < KEY_CHARACTERS or not re.fullmatch(r"[\w-]+", secret)):
        raise OutputError(
            f"{purpose}: WANDB_API_KEY is no W&B key: one has {KEY_CHARACTERS} letters and digits or more, this one has {len(secret)} "
            f"characters; {_HOW}"
        )
