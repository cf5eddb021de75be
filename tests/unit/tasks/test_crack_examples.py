import zlib

import pytest
import torch

from fat_ray.spec.task import ShiftSpec
from fat_ray.tasks.crack.disturb import augment, shifted
from fat_ray.tasks.crack.examples import CrackExamples
from fat_ray.tasks.crack.source import Pairs

NO_SHIFT = ShiftSpec(blur=0.0, noise=0.0, contrast=1.0, lighting=0.0)


def make_pairs(count: int = 4, size: int = 16) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Pairs([f"tile{i}" for i in range(count)], images, (images[:, :1] > 200).to(torch.uint8))


@pytest.fixture
def pairs() -> Pairs:
    return make_pairs()


def test_examples_are_those_of_the_given_positions(pairs: Pairs) -> None:
    examples = CrackExamples(pairs, [3, 1])
    images, masks = examples.batch([1, 0])
    assert len(examples) == 2
    assert torch.equal(images, pairs.images[[1, 3]].float() / 255)
    assert torch.equal(masks, pairs.masks[[1, 3]].float())
    assert images.max() <= 1
    assert set(masks.unique().tolist()) == {0.0, 1.0}


def test_seeds_without_an_augmentation_change_nothing(pairs: Pairs) -> None:
    examples = CrackExamples(pairs, range(4))
    assert torch.equal(examples.batch([0, 2], [5, 6])[0], examples.batch([0, 2])[0])


def test_without_seeds_nothing_is_augmented(pairs: Pairs) -> None:
    plain, augmented = CrackExamples(pairs, range(4)), CrackExamples(pairs, range(4), augmentation=augment)
    assert torch.equal(plain.batch([0, 1])[0], augmented.batch([0, 1])[0])


def test_augmentation_is_decided_by_the_seed_alone(pairs: Pairs) -> None:
    examples = CrackExamples(pairs, range(4), augmentation=augment)
    images, masks = examples.batch([0, 1, 2, 3], [10, 11, 12, 13])
    torch.rand(3)  # the global generator has no part in it
    images_alone, masks_alone = examples.batch([2], [12])
    assert torch.equal(images[2], images_alone[0])
    assert torch.equal(masks[2], masks_alone[0])
    assert not torch.equal(images_alone, examples.batch([2], [13])[0])


def test_mask_moves_with_its_image() -> None:
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = (image[:1] > 0.5).float()
    for seed in range(20):
        moved, moved_mask = augment(image, mask, seed)
        bright = image[:1][mask > 0].min() * moved[:1].mean() / image[:1].mean()
        assert torch.equal(moved_mask.sum(), mask.sum())
        assert moved[:1][moved_mask > 0].min() >= bright * 0.9
        assert moved[:1][moved_mask == 0].max() <= moved[:1][moved_mask > 0].min()


def test_augmentation_reaches_all_symmetries_of_the_square_and_keeps_the_range() -> None:
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 1] = 1
    image = torch.full((3, 4, 4), 0.95)
    results = [augment(image, mask, seed) for seed in range(200)]
    assert len({tuple(moved.flatten().tolist()) for _, moved in results}) == 8
    levels = torch.stack([moved.max() for moved, _ in results])
    assert 0.76 <= levels.min() < 0.8
    assert levels.max() == 1


def test_no_shift_leaves_the_image(pairs: Pairs) -> None:
    image, mask = pairs.images[0].float() / 255, pairs.masks[0].float()
    moved, moved_mask = shifted(NO_SHIFT)(image, mask, 3)
    assert torch.allclose(moved, image, atol=1e-6, rtol=0)
    assert moved_mask is mask


def test_contrast_scales_the_distance_from_the_mean() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    moved, _ = shifted(NO_SHIFT.model_copy(update={"contrast": 0.25}))(image, image[:1], 0)
    assert moved.mean().item() == pytest.approx(image.mean().item(), abs=1e-6)
    assert moved.std().item() == pytest.approx(0.25 * image.std().item(), rel=1e-5)


def test_noise_has_the_given_standard_deviation_and_is_fixed_by_the_seed() -> None:
    image = torch.full((3, 64, 64), 0.5)
    shift = shifted(NO_SHIFT.model_copy(update={"noise": 0.05}))
    moved, _ = shift(image, image[:1], 0)
    assert (moved - image).std().item() == pytest.approx(0.05, rel=0.05)
    assert torch.equal(moved, shift(image, image[:1], 0)[0])
    assert not torch.equal(moved, shift(image, image[:1], 1)[0])


def test_blur_of_a_point_is_a_gaussian_of_the_given_width() -> None:
    image = torch.zeros(3, 33, 33)
    image[:, 16, 16] = 1
    moved, _ = shifted(NO_SHIFT.model_copy(update={"blur": 2.0}))(image, image[:1], 0)
    profile = moved[0, 16]
    assert moved.sum().item() == pytest.approx(3, rel=1e-4)
    assert (profile[18] / profile[16]).item() == pytest.approx(2.718281828**-0.5, rel=1e-4)
    assert torch.allclose(moved[0], moved[0].T)


def test_lighting_is_a_linear_gradient_of_the_given_strength() -> None:
    image = torch.full((3, 17, 17), 0.5)
    for seed in range(5):
        moved, _ = shifted(NO_SHIFT.model_copy(update={"lighting": 0.3}))(image, image[:1], seed)
        assert (moved.max().item(), moved.min().item()) == pytest.approx((0.65, 0.35), abs=1e-5)
        assert moved.mean().item() == pytest.approx(0.5, abs=1e-5)
        assert moved[0].diff(n=2).abs().max() < 1e-6


def test_shift_of_an_example_depends_on_its_id_alone(pairs: Pairs) -> None:
    shift = shifted(ShiftSpec())
    all_images, masks = CrackExamples(pairs, range(4), shift=shift).batch([0, 1, 2, 3])
    one, _ = CrackExamples(pairs, [2], shift=shift).batch([0])
    assert torch.equal(all_images[2], one[0])
    assert torch.equal(one[0], shift(pairs.images[2].float() / 255, masks[2], zlib.crc32(b"tile2"))[0])
    assert torch.equal(masks, pairs.masks.float())
    assert all_images.min() >= 0
    assert all_images.max() <= 1
