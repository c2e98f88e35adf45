"""Result pictures: of the image as it was read, each under its own path."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from PIL import Image

from anomalib_mixedteacher.visualization import ImageVisualizer


def write_pictures(folder, paths, **trainer):
    visualizer = ImageVisualizer(fields=["image"], field_size=(64, 64), text_config={"enable": False})
    visualizer.overlay_fields = []
    batch = ImageBatch(image=torch.zeros(len(paths), 3, 64, 64), image_path=list(map(str, paths)))
    dataset = SimpleNamespace(image_filenames=paths)
    loaders = {"predicting": True, "predict_dataloaders": SimpleNamespace(dataset=dataset)}
    visualizer.on_predict_batch_end(SimpleNamespace(default_root_dir=folder, **loaders), None, None, batch, 0)
    return sorted(path.relative_to(folder / "images").as_posix() for path in (folder / "images").rglob("*.png"))


def test_images_of_one_name_keep_their_folders(tmp_path):
    paths = [tmp_path / "lots" / lot / "cam" / "0.png" for lot in "AB"]
    for path in paths:
        path.parent.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(path)
    assert write_pictures(tmp_path / "out", paths) == ["A/cam/0.png", "B/cam/0.png"]


def test_deep_and_turned_images_are_shown_as_they_were_read(tmp_path):
    values = np.linspace(5_000, 40_000, 64 * 64).reshape(64, 64).astype(np.uint16)  # brighter downwards
    Image.fromarray(values).save(tmp_path / "deep.png")
    lying = Image.fromarray((values // 256).astype(np.uint8))
    lying.getexif()[0x0112] = 3
    lying.save(tmp_path / "turned.png", exif=lying.getexif())
    paths = [tmp_path / "deep.png", tmp_path / "turned.png"]
    assert write_pictures(tmp_path / "out", paths) == ["deep.png", "turned.png"]
    deep, turned = (
        np.asarray(Image.open(tmp_path / "out" / "images" / path.name).convert("L")).astype(int) for path in paths
    )
    assert (deep.min(), deep.max()) == pytest.approx((255 * 5_000 / 65_535, 255 * 40_000 / 65_535), abs=1)
    assert abs(turned[::-1, ::-1] - values // 256).max() <= 1
