"""Arguments and options that several commands have."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class WandbMode(StrEnum):
    """What `wandb.mode` may be."""

    AUTO = "auto"
    ONLINE = "online"
    OFFLINE = "offline"
    DISABLED = "disabled"


def _holding_a_study(given: Path | list[Path]) -> Path | list[Path]:
    for directory in given if isinstance(given, list) else [given]:
        if not (directory / "study.json").is_file():
            raise typer.BadParameter(f"{directory} holds no study (no study.json): give the directory that fat-ray launch printed")
    return given


def _holding_studies(given: str | list[str]) -> str | list[str]:
    for place in given if isinstance(given, list) else [given]:
        if "://" not in place and not (Path(place, "study.json").is_file() or Path(place).parent.joinpath("study.json").is_file()):
            raise typer.BadParameter(f"{place} holds no study (no study.json): give the directory that fat-ray launch printed")
    return given


StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.", show_default=False)]
StudyDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a study.", show_default=False, callback=_holding_a_study)]
StudyPlace = Annotated[
    str, typer.Argument(metavar="DIR|URI", help="Directory of a study, or its URI.", show_default=False, callback=_holding_studies)
]
StudyPlaces = Annotated[
    list[str],
    typer.Argument(
        metavar="DIR|DIR/RUN|URI...", help="Studies or single runs, by directory or URI.", show_default=False, callback=_holding_studies
    ),
]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Set a field of the study file, such as train.steps=40; repeatable.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Directory that gets the study's own; default: output of the file.")]
Wandb = Annotated[WandbMode | None, typer.Option("--wandb", help="Mode of Weights & Biases; default: wandb.mode of the file.")]
Address = Annotated[
    str | None, typer.Option("--address", metavar="ADDR", help="Ray cluster to use; default: RAY_ADDRESS, or a Ray of its own on loopback.")
]
JsonLines = Annotated[bool, typer.Option("--json", help="Tell on stdout what happens, one JSON object per line, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
