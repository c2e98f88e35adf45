"""Models that cut images into tiles: training, prediction in torch, export, and the runtime beside the camera."""

import numpy as np
import pytest
import torch
from anomalib.deploy import CompressionType
from lightning.pytorch.callbacks import Callback
from PIL import Image

from anomalib_mixedteacher import NormalCalibratedPostProcessor
from anomalib_mixedteacher.checkpoint import calibrate_checkpoint
from anomalib_mixedteacher.errors import ConfigurationError, DataError
from mixedteacher_edge import EdgeDetector, LineScan
from mixedteacher_edge.calibrate import calibrate_export
from mixedteacher_edge.record import read_record

TILED = {"tile_size": 64, "image_size": None, "tiles_per_image": 2}
SIZES = [(40, 50), (64, 64), (64, 65), (200, 130)]


def picture(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@torch.no_grad()
def predicted(model, rgb):
    """What anomalib's predict gives: transform, model, post-processor."""
    images = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    return model.post_processor(model.eval().model(model.pre_processor.transform(images)))


@pytest.mark.parametrize("name", ["MixedTeacher", "Msfd"])
def test_torch_checkpoint_runtime_and_line_scan_agree(trained, exported, name):
    run = trained(name, **TILED)
    restored = type(run.model).load_from_checkpoint(run.checkpoint)
    detector = EdgeDetector(exported(name, **TILED))
    for size in SIZES:
        rgb = picture(size)
        expected, edge = predicted(run.model, rgb), detector.predict(rgb)
        again = predicted(restored, rgb)
        np.testing.assert_allclose(again.anomaly_map, expected.anomaly_map, atol=1e-5)
        assert expected.anomaly_map.shape == (1, 1, *size)
        np.testing.assert_allclose(edge.anomaly_map, expected.anomaly_map[0, 0, ::4, ::4], atol=1e-4)
        assert edge.score == pytest.approx(expected.pred_score.item(), abs=1e-4)
        scan = list(LineScan(detector, (rgb[start : start + 7] for start in range(0, size[0], 7)), 32))
        lines = np.concatenate([block.prediction.anomaly_map for block in scan])
        np.testing.assert_allclose(lines, edge.anomaly_map, atol=1e-6)


def test_a_profile_across_the_web_is_the_same_everywhere(trained, exported):
    arguments = TILED | {"standardize": "position"}
    run = trained(**arguments)
    restored = type(run.model).load_from_checkpoint(run.checkpoint)
    detector = EdgeDetector(exported(**arguments))
    assert len(detector.record.profile) == 24  # good images are 96 pixels wide
    for height in (64, 130):
        rgb = picture((height, 96))
        expected, edge = predicted(run.model, rgb), detector.predict(rgb)
        np.testing.assert_allclose(predicted(restored, rgb).anomaly_map, expected.anomaly_map, atol=1e-5)
        np.testing.assert_allclose(edge.anomaly_map, expected.anomaly_map[0, 0, ::4, ::4], atol=1e-4)
        assert edge.score == pytest.approx(expected.pred_score.item(), abs=1e-4)
    with pytest.raises(DataError, match="An image is 100 pixels wide, the good images were 96"):
        predicted(run.model, picture((64, 100)))


@torch.no_grad()
def test_an_image_and_its_part_agree_far_from_their_borders(trained, image_folder):
    """The tiles lie elsewhere by half a tile."""
    model = trained(**TILED).model
    good = np.asarray(Image.open(image_folder / "good_test" / "0.png"))
    whole = np.concatenate([good] * 4, axis=1)
    first, second = (
        model.model(model.pre_processor.transform(torch.from_numpy(part.copy()).permute(2, 0, 1)[None] / 255))
        for part in (whole, whole[:, 32:])
    )
    first, second = first.anomaly_map[0, 0, :, 96:256], second.anomaly_map[0, 0, :, 64:224]
    assert np.corrcoef(first.flatten(), second.flatten())[0, 1] > 0.5


def test_finds_the_defects(trained, make_data):
    run = trained(**TILED)
    (metrics,) = run.engine.test(model=run.model, datamodule=make_data(), verbose=False)
    assert metrics["image_AUROC"] > 0.9
    assert metrics["pixel_AUROC"] > 0.9


def test_quantised_and_calibrated_on_the_tiles_of_good_images(trained, make_data, tmp_path):
    run = trained(**TILED)
    model = type(run.model).load_from_checkpoint(run.checkpoint)
    datamodule = make_data()
    path = model.to_openvino(tmp_path, compression_type=CompressionType.INT8_PTQ, datamodule=datamodule, max_drop=1)
    record = read_record(path)
    assert (record.precision, record.tile_size, record.image_size) == ("INT8_PTQ", 64, None)
    assert record.quality["image_AUROC"] > 0.8
    for name in map(str, range(4)):
        (tmp_path / "good").mkdir(exist_ok=True)
        Image.fromarray(picture((130, 70), seed=int(name))).save(tmp_path / "good" / f"{name}.png")
    thresholds, _ = calibrate_export(path, tmp_path / "good", tmp_path / "own.xml", 0.5, per=32)
    assert (thresholds.per, len(thresholds.image_scores)) == (32, 4 * 5)


def test_a_checkpoint_and_its_export_are_calibrated_alike(trained, tmp_path):
    run = trained(**TILED)
    (tmp_path / "good").mkdir()
    for seed in range(5):
        Image.fromarray(picture((100, 140), seed)).save(tmp_path / "good" / f"{seed}.png")
    checkpoint = tmp_path / "own.ckpt"
    found, _ = calibrate_checkpoint(run.checkpoint, tmp_path / "good", checkpoint, 0.4, per="tile")
    exported = type(run.model).load_from_checkpoint(checkpoint).to_openvino(tmp_path)
    own, _ = calibrate_export(exported, tmp_path / "good", tmp_path / "own.xml", 0.4, per="tile")
    assert found.per == own.per == read_record(exported).thresholds.per == "tile"
    assert len(found.image_scores) == 5 * 2 * 3
    np.testing.assert_allclose(own.image_scores, found.image_scores, rtol=1e-4)
    np.testing.assert_allclose(own.pixel_scores, found.pixel_scores, rtol=1e-4)


def test_training_counts_parts_of_the_good_images(build_model, make_data, make_engine):
    processor = NormalCalibratedPostProcessor(alarm_rate=0.3, per=32)
    model = build_model(**TILED, post_processor=processor)
    make_engine(max_epochs=1).fit(model=model, datamodule=make_data(val_split_mode="from_train", val_split_ratio=0.5))
    assert len(processor.thresholds.image_scores) == 4 * 3  # images of 96 lines


def test_a_training_that_is_stopped_has_its_statistics(build_model, make_data, make_engine):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = True

    model = build_model(**TILED)
    make_engine(max_epochs=5, limit_val_batches=0, callbacks=[Stop()]).fit(model=model, datamodule=make_data())
    assert model.trainer.current_epoch < 5
    assert model.model.anomaly_map_generator.good_mean.shape == (6, 16, 16)


def test_teachers_see_a_tile_once(build_model, make_data, make_engine):
    model, seen = build_model(**TILED | {"tiles_per_image": 30}), 0

    def add(_, inputs):
        nonlocal seen
        seen += len(inputs[0])

    model.model.teachers["resnet"].register_forward_pre_hook(add)
    epochs, images, places = 2, 8, 25  # 96 - 64 pixels in steps of 8, either way
    engine = make_engine(max_epochs=epochs, limit_val_batches=0)
    engine.fit(model=model, datamodule=make_data())
    assert seen == images * places
    assert engine.trainer.global_step == epochs * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"image_size": (64, 64)}, "tile_size takes images at their own size: leave image_size out"),
        ({"tile_size": 100}, "tile_size must be a multiple of 64, such as 256, not 100"),
        ({"standardize": "web"}, "Unknown standardize 'web': choose one of tile, position"),
        ({"standardize": "position", "tile_size": None}, "standardize=position is for images that are cut into tiles"),
        ({"fusion": "product"}, "fusion=product would show the borders of tiles: use standardized_sum with tile_size"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(build_model, arguments, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        build_model(**TILED | arguments)


def test_batches_of_several_sizes_are_refused(build_model, make_data, make_engine, image_folder, tmp_path):
    (tmp_path / "good").mkdir()
    for number in range(4):
        Image.fromarray(picture((96, 96 + number // 2))).save(tmp_path / "good" / f"{number}.png")
    only_good = {"root": tmp_path, "normal_test_dir": None, "abnormal_dir": None, "mask_dir": None}
    only_good |= {"test_split_mode": "none", "val_split_mode": "none"}
    with pytest.raises(
        ConfigurationError, match="2 sizes would be stretched to one in a batch: set train_batch_size=1"
    ):
        make_engine(max_epochs=1).fit(model=build_model(**TILED), datamodule=make_data(**only_good))


def test_parts_are_counted_of_tiles_only(build_model, make_data, make_engine):
    model = build_model(post_processor=NormalCalibratedPostProcessor(per=32))
    with pytest.raises(ConfigurationError, match="per=32 counts parts of images that are cut into tiles"):
        make_engine(max_epochs=1).fit(model=model, datamodule=make_data())


def test_an_export_of_another_size_is_refused(trained, tmp_path):
    run = trained(**TILED)
    model = type(run.model).load_from_checkpoint(run.checkpoint)
    with pytest.raises(ConfigurationError, match="takes images of any size: leave input_size out"):
        model.to_openvino(tmp_path, input_size=(128, 128))
