import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fat_ray.errors import DataError
from fat_ray.tasks.crack import images
from fat_ray.tasks.crack.images import decode_pair
from fat_ray.tasks.crack.source import read_groups, read_pairs
from tests.crack_files import crack, encode, jpeg, make_rows, png, write_rows


def test_pairs_are_read_in_order_at_the_asked_size(tmp_path: Path) -> None:
    pairs = read_pairs(write_rows(tmp_path / "x.parquet", make_rows(3)), 32)
    assert pairs.ids == ["tile0", "tile1", "tile2"]
    assert (pairs.images.shape, pairs.images.dtype) == ((3, 3, 32, 32), torch.uint8)
    assert (pairs.masks.shape, pairs.masks.dtype) == ((3, 1, 32, 32), torch.uint8)
    red_per_image = pairs.images[:, 0].float().mean((1, 2))
    assert red_per_image.tolist() == pytest.approx([0, 20, 40], abs=3)


@pytest.mark.parametrize("size", [8, 24, 32, 48, 63, 64])
def test_thin_crack_survives_downsampling_as_one_unbroken_row(size: int) -> None:
    _, mask = decode_pair("a", jpeg(), png(crack(64, row=20)), size)
    assert mask.sum() == size
    assert mask.sum(axis=1).max() == size


def test_enlarged_mask_is_the_nearest_neighbour() -> None:
    corner = np.zeros((2, 2), dtype=bool)
    corner[0, 1] = True
    _, mask = decode_pair("a", jpeg((2, 2)), png(corner), 4)
    np.testing.assert_array_equal(mask, [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_mask_pooling_equals_brute_force() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((50, 70)) < 0.03
    _, mask = decode_pair("a", jpeg((70, 50)), png(truth), 32)
    rows, columns = np.arange(33) * 50 // 32, np.arange(33) * 70 // 32
    expected = [[truth[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].any() for j in range(32)] for i in range(32)]
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_mask_marks_what_is_not_black(mode: str) -> None:
    pixels = crack(32, row=5)
    if mode == "I;16":
        mask = Image.fromarray(pixels.astype(np.uint16) * 3)  # three of 65535 is crack too
    elif mode == "RGB":
        mask = Image.fromarray(np.stack([0 * pixels, 0 * pixels, pixels], axis=2).astype(np.uint8))  # the darkest blue
    else:
        mask = Image.fromarray(pixels.astype(np.uint8) * 255).convert(mode)
    _, read = decode_pair("a", jpeg((32, 32)), encode(mask, "PNG"), 32)
    np.testing.assert_array_equal(read.astype(bool), pixels)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_images_become_rgb(mode: str) -> None:
    image, _ = decode_pair("a", encode(Image.new(mode, (64, 64)), "JPEG"), png(crack()), 32)
    assert image.shape == (32, 32, 3)


def test_mask_of_another_size_names_the_id_and_both_sizes() -> None:
    with pytest.raises(DataError, match=r"mask_png of 'slide7' is 32x32 pixels but its image is 64x48"):
        decode_pair("slide7", jpeg((64, 48)), png(crack(32)), 32)


@pytest.mark.parametrize("keep", [0, 3, 100, 400])
def test_truncated_image_is_refused_by_name(keep: int) -> None:
    generator = np.random.default_rng(0)
    noisy = encode(Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")
    assert len(noisy) > 2 * keep
    with pytest.raises(DataError, match="of 'slide7'"):
        decode_pair("slide7", noisy[: len(noisy) // 2] if keep == 400 else noisy[:keep], png(crack()), 32)


def test_damaged_mask_is_refused_by_name() -> None:
    whole = bytearray(png(np.random.default_rng(0).random((64, 64)) < 0.5))
    with pytest.raises(DataError, match="of 'slide7'"):
        decode_pair("slide7", jpeg(), bytes(whole[: len(whole) // 2]), 32)


def test_formats_other_than_the_columns_name_are_refused() -> None:
    with pytest.raises(DataError, match="image_jpeg of 'a' is not a readable JPEG"):
        decode_pair("a", png(crack()), png(crack()), 32)
    with pytest.raises(DataError, match="mask_png of 'a' is not a readable PNG"):
        decode_pair("a", jpeg(), jpeg(), 32)


def test_image_with_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(DataError, match="image_jpeg of 'bomb' has 64x64 pixels; at most 4095"):
        decode_pair("bomb", jpeg(), png(crack()), 32)


def test_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="image_jpeg of 'bomb'"):
        decode_pair("bomb", jpeg(), png(crack()), 32)


def test_unreadable_pair_in_a_file_names_file_and_id(tmp_path: Path) -> None:
    rows = make_rows(3)
    rows[1]["image_jpeg"] = b"not an image"
    with pytest.raises(DataError, match=r"x\.parquet: image_jpeg of 'tile1'"):
        read_pairs(write_rows(tmp_path / "x.parquet", rows), 32)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.parquet is not a file"):
        read_pairs(tmp_path / "absent.parquet", 32)


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file"):
        read_pairs(tmp_path, 32)


@pytest.mark.parametrize("content", [b"", b"id,image\n1,2\n", b"PAR1" + bytes(40)])
def test_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet is not a readable Parquet file"):
        read_pairs(tmp_path / "x.parquet", 32)


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.parquet", make_rows(5))
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet"):
        read_pairs(path, 32)


def test_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no column mask_png; needed are id, image_jpeg, mask_png, found are id, image_jpeg"):
        read_pairs(write_rows(tmp_path / "x.parquet", make_rows(1), columns=("id", "image_jpeg")), 32)


def test_column_of_another_type_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "image_jpeg": [b""], "mask_png": [b""]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"column id of .* holds int64; it must hold string"):
        read_pairs(tmp_path / "x.parquet", 32)


def test_empty_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        read_pairs(write_rows(tmp_path / "x.parquet", []), 32)


def test_repeated_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="id 'tile0' occurs more than once"):
        read_pairs(write_rows(tmp_path / "x.parquet", make_rows(1) * 2), 32)


def test_null_is_refused(tmp_path: Path) -> None:
    rows = make_rows(2)
    rows[1]["mask_png"] = None
    with pytest.raises(DataError, match="mask_png of id 'tile1' is null"):
        read_pairs(write_rows(tmp_path / "x.parquet", rows), 32)


def test_groups_are_read_for_the_ids_asked(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(json.dumps({"a": 1, "b": "left", "c": 1}))
    assert read_groups(tmp_path / "g.json", ["c", "b"]) == ["1", "left"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a readable JSON file"),
        ("[1, 2]", "holds a list; it must be an object"),
        ('{"a": 1}', "has no group for 1 of 2 images, such as b"),
        ('{"a": 1, "b": [2]}', r"gives 'b' the group \[2\]"),
        ('{"a": 1, "b": true}', "gives 'b' the group True"),
    ],
)
def test_bad_groups_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "g.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_groups(tmp_path / "g.json", ["a", "b"])


def test_missing_groups_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task\.groups: .*g\.json is not a readable JSON file"):
        read_groups(tmp_path / "g.json", ["a"])


def test_damage_anywhere_in_a_file_is_a_data_error_or_harmless() -> None:
    image, mask = jpeg(), encode(Image.fromarray(crack().astype(np.uint8) * 255).convert("P"), "PNG")
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged_image, damaged_mask = bytearray(image), bytearray(mask)
        damaged_image[generator.integers(len(image))] = generator.integers(256)
        damaged_mask[generator.integers(len(mask))] = generator.integers(256)
        try:
            decode_pair("a", bytes(damaged_image), bytes(damaged_mask), 32)
        except DataError:
            refused += 1
    assert refused > 0
