"""The command ``predict MODEL.xml SOURCES...``, in-process; its sources and its overlays."""

import csv
import io
import json
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion

from mixedteacher_edge import EdgeDetector, Prediction, Thresholds, overlay, sources
from mixedteacher_edge.__main__ import main
from mixedteacher_edge.errors import DataError
from mixedteacher_edge.overlay import CONTOUR, draw
from mixedteacher_edge.sources import open_sources

from .conftest import write_record


def run(model, *arguments):
    return main(["predict", str(model), *map(str, arguments)])


def rows_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_jsonl(model, folder, capsys):
    assert run(model, folder, folder / "b.png") == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    paths = [folder / "a.png", folder / "b.png", folder / "more" / "a.png", folder / "b.png"]
    assert [row["name"] for row in rows] == [str(path) for path in paths]
    assert [row["label"] for row in rows] == [False, True, False, True]
    for row, value in zip(rows, (10, 200, 20, 200), strict=True):
        assert list(row) == ["name", "score", "label", "p_value", "overlay", "error"]
        assert row["score"] == pytest.approx(value / 255, abs=1e-5)
        assert row["p_value"] == pytest.approx((5 if value < 25 else 1) / 5)
        assert row["error"] is row["overlay"] is None
    summary = captured.err.splitlines()[-1]
    assert summary.startswith("4 images, 2 defects, 0 unreadable, ")
    assert summary.endswith(" images a second")


def test_csv_in_a_file(model, folder, tmp_path, capsys):
    output = tmp_path / "results.csv"
    (folder / "b.png").write_bytes(b"broken")
    assert run(model, folder, "--format", "csv", "--output", output) == 1
    assert not capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["label"] for row in rows] == ["false", "", "false"]
    assert float(rows[0]["score"]) == pytest.approx(10 / 255, abs=1e-5)
    assert rows[1]["score"] == rows[1]["p_value"] == rows[0]["error"] == ""
    assert rows[1]["error"].startswith(f"Cannot read the image {folder / 'b.png'} (not a known image format)")


def test_null_where_a_model_was_not_calibrated(model, folder, capsys):
    write_record(model, thresholds=Thresholds(0.5))
    assert run(model, folder / "a.png") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["p_value"] is None
    assert captured.err == "1 images, 0 defects, 0 unreadable\n"


def test_exit_status(model, folder):
    assert run(model, folder, "--fail-on-defect") == 3
    assert run(model, folder / "a.png", "--fail-on-defect") == 0
    (folder / "a.png").write_bytes(b"broken")
    assert run(model, folder) == 1
    assert run(model, folder, "--fail-on-defect") == 3
    assert run(model, folder / "a.png", "--fail-on-defect") == 1


def test_options(model, folder, tmp_path, capsys):
    assert run(model, folder, "--limit", 2, "--cache", tmp_path / "cache", "--hint", "throughput") == 0
    assert len(rows_of(capsys)) == 2
    assert list((tmp_path / "cache").iterdir())
    assert run(model, folder, "--no-cache", "--precision", "auto", "--device", "AUTO") == 0
    assert not model.with_name(".openvino_cache").exists()
    capsys.readouterr()
    assert run(model, folder, "--threshold", 0.06) == 0
    assert [row["label"] for row in rows_of(capsys)] == [False, True, True]  # 10, 200 and 20 of 255
    Image.fromarray(np.full((40, 40), 2**11, np.uint16)).save(folder / "deep.png")
    assert run(model, folder / "deep.png", "--bits", 12) == 0
    assert rows_of(capsys)[0]["score"] == pytest.approx(2**11 / 4095, abs=1e-5)
    assert run(model, folder / "deep.png", "--max-pixels", 1000) == 1
    assert "raise it (max_pixels, --max-pixels, or" in rows_of(capsys)[0]["error"]


@pytest.mark.parametrize(
    "arguments", [["--limit", "0"], ["--cache", "c", "--no-cache"], ["--format", "xml"], ["--precision", "bf16"]]
)
def test_usage_errors(model, folder, arguments):
    with pytest.raises(SystemExit) as info:
        run(model, folder, *arguments)
    assert info.value.code == 2


def test_errors_are_one_sentence(model, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    video = tmp_path / "broken.mp4"
    video.write_bytes(b"no video")
    expected = [
        ((model, tmp_path / "empty"), f"There are no images in {tmp_path / 'empty'}: put images there"),
        ((model, tmp_path / "gone"), f"There is no file or folder {tmp_path / 'gone'}: check the path."),
        ((model, "camera:left"), "'camera:left' is no camera: give its number, such as camera:0."),
        ((model, video), f"Cannot open {video}: check that it is a video."),
        ((tmp_path / "gone.xml", folder), "There is no model"),
        ((model, folder, "--device", "TPU"), "There is no device 'TPU': choose one of AUTO, CPU"),
        ((model, folder, "--threshold", 1), "threshold is 1.0: give a score above 0 and below 1"),
        ((model, folder, "--output", tmp_path / "gone" / "r"), "(No such file or directory): give another file with"),
        ((model, folder, "--output", tmp_path), "(Is a directory): give another file with --output."),
        ((model, folder, "--overlays", video), f"Cannot make the folder {video} (File exists): give another one"),
    ]
    for arguments, sentence in expected:
        assert run(*arguments) == 1
        captured = capsys.readouterr()
        assert not captured.out
        line = captured.err.splitlines()[-1]  # OpenCV says something of its own before
        assert line.startswith("mixedteacher-edge: ")
        assert sentence in line
        assert "Traceback" not in captured.err


def test_without_opencv(model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert run(model, "camera:0") == 1
    assert "need OpenCV: install opencv-python-headless, or give images." in capsys.readouterr().err


def test_video(model, tmp_path, capsys):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(5):
        writer.write(np.full((48, 64, 3), (255, 0, 0), np.uint8))  # blue, which counts half
    writer.release()
    assert run(model, path, "--limit", 4, "--overlays", tmp_path / "o") == 0
    rows = rows_of(capsys)
    assert [row["name"] for row in rows] == [f"{path}#{number:06d}" for number in range(4)]
    assert all(row["score"] == pytest.approx(0.5, abs=0.02) for row in rows)
    assert rows[3]["overlay"] == str(tmp_path / "o" / "clip.avi_000003.png")
    assert len(list(open_sources([str(path)]))) == 5


class Camera:
    """In OpenCV's place: some frames at each connection, without end by default."""

    def __init__(self, *connections):
        self.connections, self.opened, self.released = list(connections), [], False
        self.left = self.connections.pop(0) if self.connections else None

    def open(self, device):
        self.opened.append(device)
        self.left = self.connections.pop(0) if self.connections else 0

    def isOpened(self):  # noqa: N802
        return True

    def read(self):
        if self.left == 0:
            return False, None
        self.left = self.left and self.left - 1
        return True, np.zeros((48, 40, 3), np.uint8)

    def release(self):
        self.released = True


@pytest.fixture
def connect(monkeypatch):
    """Let OpenCV give a camera instead of what it opens; nobody waits."""
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(sources.time, "sleep", lambda _: None)

    def connect(*connections):
        camera = Camera(*connections)
        monkeypatch.setattr(cv2, "VideoCapture", lambda _: camera)
        return camera

    return connect


def test_camera(model, capsys, connect):
    camera = connect()
    assert run(model, "camera:3", "--limit", 5) == 0
    assert [row["name"] for row in rows_of(capsys)] == [f"camera:3#00000{number}" for number in range(5)]
    assert camera.released
    connect(0)
    with pytest.raises(DataError, match="camera:3 gives no frame: check the connection"):
        next(open_sources(["camera:3"]))


def test_a_camera_that_is_pulled_out_is_no_end_of_a_run(model, tmp_path, capsys, connect):
    connect(3)
    output = tmp_path / "rows.jsonl"
    assert run(model, "camera:0", "--output", output) == 1
    assert "camera:0 gives no more frames: check the connection." in capsys.readouterr().err
    names = [json.loads(line)["name"] for line in output.read_text().splitlines()]
    assert names == ["camera:0#000000", "camera:0#000001", "camera:0#000002"]


def test_an_address_is_a_camera_that_is_tried_again(connect):
    address = "rtsp://user:secret@camera.local/stream"
    camera = connect(2, 0, 0, 3)
    frames = open_sources([address])
    names = [next(frames)[0] for _ in range(5)]
    assert names == [f"rtsp://camera.local/stream#00000{number}" for number in range(5)]
    assert camera.opened == [address] * 3
    with pytest.raises(DataError, match="rtsp://camera.local/stream gives no more frames: check the connection"):
        next(frames)
    assert len(camera.opened) == 3 + len(sources.RETRIES)
    assert camera.released


def test_pages_of_a_tiff_file(model, folder, tmp_path, capsys, caplog):
    pages = [Image.new("RGB", (40, 48), (value, value, value)) for value in (10, 200, 20)]
    pages[0].save(folder / "a.tif", save_all=True, append_images=pages[1:])
    assert run(model, folder / "a.tif", "--overlays", tmp_path / "o") == 0
    rows = rows_of(capsys)
    assert [row["name"] for row in rows] == [f"{folder / 'a.tif'}{end}" for end in ("", "#2", "#3")]
    assert [row["score"] for row in rows] == pytest.approx([10 / 255, 200 / 255, 20 / 255], abs=1e-5)
    assert len({row["overlay"] for row in rows}) == 3
    assert "several pages" not in caplog.text


def test_interrupted(model, tmp_path, monkeypatch, capsys, connect):
    connect()
    stream = EdgeDetector.stream

    def interrupted(self, images):
        for number, item in enumerate(stream(self, images)):
            if number == 3:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(EdgeDetector, "stream", interrupted)
    output = tmp_path / "rows.jsonl"
    assert run(model, "camera:0", "--output", output) == 0
    assert len(output.read_text().splitlines()) == 3
    assert capsys.readouterr().err.startswith("3 images, ")


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="file names are Unicode there")
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_name_that_is_not_utf_8(model, folder, tmp_path, form):
    name = os.fsencode(folder) + b"/pr\xfcf.png"
    os.rename(os.fsencode(folder / "b.png"), name)  # noqa: PTH104  # of bytes
    output = tmp_path / "rows"
    assert run(model, folder, "--format", form, "--output", output) == 0
    assert (b"pr\xfcf.png" if form == "csv" else rb"pr\udcfcf.png") in output.read_bytes()


def in_a_process(model, *arguments, before="", after="", **options):
    """Run the command in a process of its own, on images without end."""
    code = f"""
import itertools, os, signal, sys
import numpy as np
from mixedteacher_edge import predict
from mixedteacher_edge.__main__ import main

def endless(*_):
    for number in itertools.count():
        {before or "pass"}
        yield str(number), np.full((48, 40, 3), number % 100, np.uint8)

predict.open_sources = endless
status = main({["predict", str(model), "camera:0", *map(str, arguments)]!r})
{after}
raise SystemExit(status)
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="there SIGTERM cannot be caught")
def test_sigterm_is_the_end_of_a_run_like_control_c(model, tmp_path):
    output = tmp_path / "rows.jsonl"
    kill = "number == 40 and os.kill(os.getpid(), signal.SIGTERM)"
    process = in_a_process(
        model, "--output", output, before=kill, after="assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL"
    )
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0, error
    names = [json.loads(line)["name"] for line in output.read_text().splitlines()]
    assert names == [str(number) for number in range(len(names))]
    assert len(names) >= 20
    assert " images, 0 defects, 0 unreadable" in error


def test_in_another_thread_signals_are_left_alone(model, folder, tmp_path):
    with ThreadPoolExecutor(1) as other:
        assert other.submit(run, model, folder, "--output", tmp_path / "rows").result() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits there")
@pytest.mark.parametrize("redirected", [False, True])
def test_a_full_disk_keeps_the_rows_before(model, tmp_path, redirected):
    """A limit in the middle of a row, in place of a full disk."""
    output = tmp_path / "rows"
    limit = "number or __import__('resource').setrlimit(__import__('resource').RLIMIT_FSIZE, (5000, 5000))"
    if redirected:
        with output.open("w") as file:
            process = in_a_process(model, "--no-cache", before=limit, stdout=file)
    else:
        process = in_a_process(model, "--no-cache", "--output", output, before=limit)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1, error
    (line,) = error.splitlines()
    assert "Cannot write the results (File too large): free space there, or give another file with --output." in line
    assert len(output.read_text().splitlines()) > 20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device on this system")
def test_a_full_device(model, folder, capsys):
    assert run(model, folder, "--output", "/dev/full") == 1
    assert "Cannot write the results (No space left on device): free space" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="there is no such device on this system")
@pytest.mark.parametrize("arguments", [["--format", "csv", "--output", "/dev/stdout"], []])
def test_a_reader_that_leaves(model, arguments):
    """As with ``--output /dev/stdout | head``."""
    process = in_a_process(model, *arguments, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0, error
    assert "Traceback" not in error
    assert " images, 0 defects" in error


def test_progress_only_on_a_terminal(model, folder, capsys, monkeypatch):
    run(model, folder)
    assert "\r" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(model, folder)
    assert "\r3 images, 1 defects" in capsys.readouterr().err


def test_overlays_keep_the_paths_of_their_images(model, folder, tmp_path, capsys):
    overlays = tmp_path / "overlays"
    Image.new("L", (40, 48)).save(folder / "B.jpg")
    assert run(model, folder, folder / "a.png", "--overlays", overlays) == 0
    names = ["B", "a", "b_2", "more/a", "a_2"]  # some file systems do not tell b from B
    assert [row["overlay"] for row in rows_of(capsys)] == [str(overlays / f"{name}.png") for name in names]
    for name in names:
        with Image.open(overlays / f"{name}.png") as image:
            assert image.size == (40, 48)


@pytest.mark.parametrize("place", ["", "heat", "more/heat"])
def test_overlays_among_the_images_are_refused(model, folder, place, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(model, folder, "--overlays", folder / place) == 1
    assert "would lie among the images of" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (folder / "heat").exists()
    assert run(model, folder / "a.png", "--overlays", folder) == 1
    assert run(model, folder / "a.png", "--overlays", folder / "heat") == 0
    assert (folder / "heat" / "a.png").exists()


def test_an_overlay_that_cannot_be_written_does_not_end_the_run(model, folder, tmp_path, capsys):
    overlays = tmp_path / "overlays"
    (overlays / "b.png").mkdir(parents=True)
    assert run(model, folder, "--overlays", overlays) == 1
    captured = capsys.readouterr()
    assert [json.loads(row)["overlay"] is None for row in captured.out.splitlines()] == [False, True, False]
    assert f"Cannot write {overlays / 'b.png'} (Is a directory): free space there" in captured.err
    assert "3 images, 1 defects, 0 unreadable, 1 overlays missing" in captured.err


def prediction(anomaly_map, mask):
    return Prediction(0.9, True, anomaly_map.astype(np.float32), mask, None)


@pytest.mark.parametrize("strip", [2**18, 7 * 40])
def test_overlay_against_numpy(monkeypatch, strip):
    """A map of zeros and ones: two colours, and a contour where they meet."""
    monkeypatch.setattr(overlay, "_STRIP", strip)
    inside = np.zeros((40, 40), bool)
    inside[10:20, 5:25] = True
    inside[36:, 30:] = True
    rgb = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    drawn = draw(rgb, prediction(inside, inside))
    rim = inside & ~binary_erosion(inside)
    assert (drawn[rim] == CONTOUR).all()
    for region, color in ((~inside, (0, 0, 128)), (inside & ~rim, (160, 0, 0))):
        expected = 0.6 * rgb[region].astype(np.float64) + 0.4 * np.array(color)
        assert abs(drawn[region] - expected).max() <= 0.5 + 1e-5
    assert abs(draw(rgb / 255, prediction(inside, inside)).astype(int) - drawn).max() <= 1


def test_overlay_is_as_large_as_the_image_and_the_same_in_strips(monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.random((32, 24))
    image = rng.integers(0, 256, (700, 640, 3), np.uint8)
    drawn = draw(image, prediction(values, values > 0.7))
    assert drawn.shape == image.shape
    mask = np.asarray(Image.fromarray(values > 0.7).resize((640, 700), Image.Resampling.NEAREST))
    cross = np.zeros((7, 7), bool)
    cross[3] = cross[:, 3] = True  # the contour is 1 + 640 // 300 pixels wide
    rim = mask & ~binary_erosion(mask, cross)
    assert np.array_equal((drawn == CONTOUR).all(axis=-1), rim)
    monkeypatch.setattr(overlay, "_STRIP", 640 * 41)
    assert (abs(draw(image, prediction(values, values > 0.7)).astype(int) - drawn) > 1).mean() < 1e-4


def test_overlays_take_a_part_of_their_images_memory(tmp_path):
    image = np.zeros((3000, 4000, 3), np.uint8)
    values = np.random.default_rng(0).random((64, 64))
    tracemalloc.start()
    try:
        overlay.OverlayFolder(tmp_path).write("large", image, prediction(values, values > 0.5))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.7 * image.nbytes
    with Image.open(tmp_path / "large.png") as drawn:
        assert drawn.size == (4000, 3000)


def test_drift_is_told_and_its_window_kept(model, tmp_path, capsys):
    write_record(model, thresholds=Thresholds(0.5, 0.5, 0.2, 1, tuple(np.linspace(0.1, 0.2, 50))))
    root, state = tmp_path / "line", tmp_path / "drift.json"
    root.mkdir()
    for index in range(99):
        Image.new("RGB", (40, 48), (100, 100, 100)).save(root / f"{index:03}.png")
    assert run(model, root, "--drift", state) == 0  # scores of 0.39, below the threshold, all above the calibration's
    assert "calibration images" not in capsys.readouterr().err
    assert len(json.loads(state.read_text())["scores"]) == 99
    run(model, root, "--drift", state)
    capsys.readouterr()
    assert run(model, root / "000.png", root / "001.png", "--drift", state) == 0
    error = capsys.readouterr().err
    assert "The last 200 passed images no longer look like the calibration images: scores mostly higher" in error
    assert json.loads(state.read_text())["scores"] == []
