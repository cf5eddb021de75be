"""The crack segmentation task: model, data, loss and metrics as a `fat_ray.tasks.base.Task`."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fat_ray.errors import DataError
from fat_ray.spec.task import EMBEDDED, CrackSegmentationSpec
from fat_ray.tasks import lite0
from fat_ray.tasks.base import Batch, Direction, ExampleSet
from fat_ray.tasks.crack.disturb import augment, shifted
from fat_ray.tasks.crack.examples import CrackExamples
from fat_ray.tasks.crack.measures import example_losses, segmentation_metrics, segmentation_sums
from fat_ray.tasks.crack.model import CrackSegmenter
from fat_ray.tasks.crack.source import Pairs, read_groups, read_pairs
from fat_ray.tasks.crack.split import Split, grouped_split

_EMBEDDED = Path(__file__).parent.parent / "data"


class CrackSegmentation:
    """Binary segmentation of cracks.

    Raises:
        DataError: The data cannot be used, or weights are asked for that are not installed.
    """

    metrics: Mapping[str, Direction] = {"f1": "maximize", "iou": "maximize", "loss": "minimize", "constant_f1": "maximize"}

    def __init__(self, spec: CrackSegmentationSpec) -> None:
        self._spec = spec
        self._weights = lite0.weights_path() if spec.pretrained else None
        embedded = spec.data == EMBEDDED
        pairs = read_pairs(_EMBEDDED / "uav_256.parquet" if embedded else Path(spec.data), spec.image_size)
        groups_path = _EMBEDDED / "uav_groups.json" if embedded and spec.groups is None else spec.groups
        groups = pairs.ids if groups_path is None else read_groups(Path(groups_path), pairs.ids)
        split = grouped_split(groups, spec.val_fraction, spec.test_fraction, spec.split_seed)
        _check_cracks(pairs, split)
        self._train = CrackExamples(pairs, split.train, augmentation=augment if spec.augment else None)
        self._evaluation = {
            "val": CrackExamples(pairs, split.val),
            "test": CrackExamples(pairs, split.test),
            "zero_shot": CrackExamples(pairs, split.test, shift=shifted(spec.shift)),
        }

    def build_model(self) -> CrackSegmenter:
        """The network; its head, and without pretrained weights also its encoder, comes from torch's global generator."""
        model = CrackSegmenter(self._spec.head_width, self._spec.batchnorm_momentum)
        if self._weights is not None:
            lite0.load_imagenet(model.encoder, self._weights)
        return model

    def train_set(self) -> ExampleSet:
        """The training split."""
        return self._train

    def evaluation_sets(self) -> Mapping[str, ExampleSet]:
        """``val``, ``test``, and ``zero_shot``: the test images under blur, noise, and shifts of contrast and lighting."""
        return self._evaluation

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the images of cross-entropy plus Dice loss."""
        images, masks = batch
        return example_losses(model(images), masks, self._spec.positive_weight).mean()

    def accumulate(self, model: nn.Module, batch: Batch) -> Mapping[str, float]:
        """Sums over the images of the batch."""
        images, masks = batch
        logits = model(images)
        return segmentation_sums(logits, masks, example_losses(logits, masks, self._spec.positive_weight))

    def finish(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of a whole set."""
        return segmentation_metrics(sums)


def _check_cracks(pairs: Pairs, split: Split) -> None:
    """Refuses a split without a crack: nothing could be learnt from it, and F1 on it would be 0 for every model."""
    for name in ("train", "val", "test"):
        indices = getattr(split, name)
        if not pairs.masks[indices].any():
            raise DataError(
                f"none of the {len(indices)} images of the {name} split has a crack pixel; look at the masks, or change task.split_seed"
            )
