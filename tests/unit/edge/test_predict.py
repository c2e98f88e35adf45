"""The command ``mixedteacher predict MODEL.xml SOURCES...``, in-process."""

import csv
import errno
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixedteacher_edge import EdgeDetector, Prediction, Thresholds, predict
from mixedteacher_edge.__main__ import main
from mixedteacher_edge.errors import DataError
from mixedteacher_edge.overlay import CONTOUR, draw
from mixedteacher_edge.sources import open_sources


def run(model, *arguments):
    return main(["predict", str(model), *map(str, arguments)])


def test_jsonl(model, folder, capsys):
    assert run(model, folder, folder / "b.png") == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    paths = [folder / "a.png", folder / "b.png", folder / "more" / "a.png", folder / "b.png"]
    assert [row["name"] for row in rows] == [str(path) for path in paths]
    assert [row["label"] for row in rows] == [False, True, False, True]
    for row, value in zip(rows, (10, 200, 20, 200), strict=True):
        assert list(row) == ["name", "score", "label", "p_value", "error"]
        assert row["score"] == pytest.approx(value / 255, abs=1e-5)
        assert row["p_value"] == pytest.approx((5 if value < 25 else 1) / 5)
        assert row["error"] is None
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
    assert not list(tmp_path.glob("*.part"))


def test_null_where_a_model_was_not_calibrated(model, folder, capsys):
    from .conftest import write_record

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


def test_limit_cache_and_choices(model, folder, tmp_path, capsys):
    assert run(model, folder, "--limit", 2, "--cache", tmp_path / "cache", "--hint", "throughput") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert list((tmp_path / "cache").iterdir())
    assert run(model, folder, "--no-cache", "--precision", "auto", "--device", "AUTO") == 0
    assert not model.with_name(".openvino_cache").exists()


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
        ((model, folder, "--output", tmp_path / "gone" / "r"), "(No such file or directory): give another file with"),
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


def test_without_opencv(model, tmp_path, capsys, monkeypatch):
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
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == [f"{path}#{number:06d}" for number in range(4)]
    assert all(row["score"] == pytest.approx(0.5, abs=0.02) for row in rows)
    assert (tmp_path / "o" / "clip.avi_000003.png").exists()


class Camera:
    """In OpenCV's place: frames without end, or none."""

    def __init__(self, frames=None):
        self.frames, self.released = frames, False

    def isOpened(self):  # noqa: N802
        return True

    def read(self):
        if self.frames == 0:
            return False, None
        self.frames = self.frames and self.frames - 1
        return True, np.zeros((48, 40, 3), np.uint8)

    def release(self):
        self.released = True


def test_camera(model, capsys, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    camera = Camera()
    monkeypatch.setattr(cv2, "VideoCapture", lambda device: camera if device == 3 else None)
    assert run(model, "camera:3", "--limit", 5) == 0
    assert [json.loads(line)["name"][-2:] for line in capsys.readouterr().out.splitlines()] == ["00", "01", "02", "03", "04"]  # fmt: skip # noqa: E501
    camera.frames = 0
    with pytest.raises(DataError, match="No frame can be read from camera:3"):
        next(open_sources(["camera:3"]))
    assert camera.released


def test_a_camera_that_is_pulled_out_is_no_end_of_a_run(model, tmp_path, capsys, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "VideoCapture", lambda device: Camera(3))
    output = tmp_path / "rows.jsonl"
    assert run(model, "camera:0", "--output", output) == 1
    assert "camera:0 gives no more frames: check its connection." in capsys.readouterr().err
    names = [json.loads(line)["name"] for line in output.read_text().splitlines()]
    assert names == ["camera:0#000000", "camera:0#000001", "camera:0#000002"]


def test_interrupted(model, tmp_path, monkeypatch, capsys):
    cv2 = pytest.importorskip("cv2")
    camera = Camera()
    monkeypatch.setattr(cv2, "VideoCapture", lambda device: camera)
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


def test_a_file_of_results_is_a_whole_one(model, folder, tmp_path, monkeypatch):
    output = tmp_path / "rows.jsonl"
    output.write_text("before")

    def broken(*arguments):
        assert output.read_text() == "before"
        raise OSError("disk full")

    monkeypatch.setattr(predict, "_row", broken)
    with pytest.raises(OSError, match="disk full"):
        run(model, folder, "--output", output)
    assert output.read_text() == "before"
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_is_no_output(model, folder, tmp_path, capsys):
    for output in (tmp_path, ""):
        assert run(model, folder, "--output", output) == 1
        captured = capsys.readouterr()
        assert "(Is a directory): give another file with --output." in captured.err
        assert "Traceback" not in captured.err
    assert not list(tmp_path.parent.glob("*.part"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes on this system")
def test_a_pipe_stays_a_pipe(model, folder, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read_text)
        assert run(model, folder, "--output", pipe) == 0
        assert len(read.result().splitlines()) == 3
    assert pipe.is_fifo()


def test_a_symbolic_link_stays_one(model, folder, tmp_path):
    target, link = tmp_path / "rows.jsonl", tmp_path / "latest.jsonl"
    target.write_text("before")
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("this system makes no symbolic links here")
    assert run(model, folder, "--output", link) == 0
    assert link.is_symlink()
    assert len(target.read_text().splitlines()) == 3


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="file names are Unicode there")
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_name_that_is_not_utf_8(model, folder, tmp_path, form):
    name = os.fsencode(folder) + b"/pr\xfcf.png"
    os.rename(os.fsencode(folder / "b.png"), name)  # noqa: PTH104  # of bytes
    output = tmp_path / "rows"
    assert run(model, folder, "--format", form, "--output", output) == 0
    assert (b"pr\xfcf.png" if form == "csv" else rb"pr\udcfcf.png") in output.read_bytes()
    code = (
        f"from mixedteacher_edge.__main__ import main; main({['predict', str(model), str(folder), '--format', form]!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"pr\udcfcf.png" in done.stdout


@pytest.mark.parametrize("readable", [0, 5])
@pytest.mark.parametrize("error", [DataError("No frame can be read from camera:0: check the camera."), RuntimeError("x"), SystemExit(7)], ids=repr)  # fmt: skip # noqa: E501
def test_an_error_late_in_a_run_leaves_its_rows(model, tmp_path, monkeypatch, capsys, readable, error):
    output = tmp_path / "rows.jsonl"
    output.write_text("before")

    def pulled_out(*_):
        for number in range(readable):
            yield str(number), np.full((48, 40, 3), 40 * number, np.uint8)
        raise error

    monkeypatch.setattr(predict, "open_sources", pulled_out)
    if isinstance(error, DataError):
        assert run(model, "camera:0", "--output", output) == 1
        assert "No frame can be read" in capsys.readouterr().err
    else:
        with pytest.raises(type(error)):
            run(model, "camera:0", "--output", output)
    assert not list(tmp_path.glob("*.part"))
    if readable:
        names = [json.loads(line)["name"] for line in output.read_text().splitlines()]
        assert names == [str(number) for number in range(len(names))]
        assert len(names) >= 1
    else:
        assert output.read_text() == "before"


def in_a_process(model, *arguments, before="", after="", **options):
    """Run the command in a process of its own, on images without end."""
    code = f"""
import itertools, os, signal, sys
import numpy as np
from mixedteacher_edge.__main__ import main
from mixedteacher_edge import predict

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


def names_in(rows):
    names = [json.loads(line)["name"] for line in rows.splitlines()]
    assert names == [str(number) for number in range(len(names))]
    return names


@pytest.mark.skipif(sys.platform == "win32", reason="there SIGTERM cannot be caught")
def test_sigterm_is_the_end_of_a_run_like_control_c(model, tmp_path):
    output = tmp_path / "rows.jsonl"
    kill = "number == 40 and os.kill(os.getpid(), signal.SIGTERM)"
    process = in_a_process(
        model, "--output", output, before=kill, after="assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL"
    )
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0, error
    assert len(names_in(output.read_text())) >= 20
    assert " images, 0 defects, 0 unreadable" in error
    assert not list(tmp_path.glob("*.part"))


def test_in_another_thread_signals_are_left_alone(model, folder, tmp_path):
    with ThreadPoolExecutor(1) as other:
        assert other.submit(run, model, folder, "--output", tmp_path / "rows").result() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits there")
@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("redirected", [False, True])
def test_a_full_disk_keeps_the_rows_before(model, tmp_path, form, redirected):
    """A limit in the middle of a row, in place of a full disk."""
    output = tmp_path / "rows"
    limit = "number or __import__('resource').setrlimit(__import__('resource').RLIMIT_FSIZE, (5000, 5000))"
    arguments = ["--format", form, "--no-cache"]
    if redirected:
        with output.open("w") as file:
            process = in_a_process(model, *arguments, before=limit, stdout=file)
    else:
        process = in_a_process(model, *arguments, "--output", output, before=limit)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1, error
    assert error.splitlines() == [
        "mixedteacher-edge: Cannot write the results (File too large): free space there, or give another file with --output."
    ]
    content = output.read_text()
    assert len(content) > 4500
    if not redirected:
        assert content.endswith("\n")
        assert len(names_in(content) if form == "jsonl" else list(csv.DictReader(io.StringIO(content)))) > 20
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device on this system")
def test_a_full_device(model, folder, capsys):
    assert run(model, folder, "--output", "/dev/full") == 1
    assert "Cannot write the results (No space left on device): free space" in capsys.readouterr().err


def test_rows_that_cannot_get_their_name_stay_under_another(model, folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "rows.jsonl"

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    assert run(model, folder, "--output", output, "--no-cache") == 1
    part = tmp_path / "rows.jsonl.part"
    assert f"Cannot write {output} (Permission denied): the results are in {part}." in capsys.readouterr().err
    assert len(part.read_text().splitlines()) == 3


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="there is no such device on this system")
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_reader_that_leaves(model, form):
    """As with ``--output /dev/stdout | head``."""
    process = in_a_process(model, "--format", form, "--output", "/dev/stdout", stdout=subprocess.PIPE)
    assert process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0, error
    assert "Traceback" not in error
    assert " images, 0 defects" in error


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="there is no such folder on this system")
def test_an_unnamed_pipe(model, folder):
    """As with ``--output >(gzip > rows.gz)``."""
    reading, writing = os.pipe()
    with ThreadPoolExecutor(1) as reader, os.fdopen(reading) as file:
        read = reader.submit(file.read)
        try:
            assert run(model, folder, "--output", f"/dev/fd/{writing}") == 0
        finally:
            os.close(writing)
        assert len(read.result().splitlines()) == 3


def test_progress_only_on_a_terminal(model, folder, capsys, monkeypatch):
    run(model, folder)
    assert "\r" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(model, folder)
    assert "\r3 images, 1 defects" in capsys.readouterr().err


def test_overlay_files(model, folder, tmp_path):
    overlays = tmp_path / "overlays"
    Image.new("L", (40, 48)).save(folder / "B.jpg")
    assert run(model, folder, "--overlays", overlays) == 0
    names = sorted(path.name for path in overlays.iterdir())
    assert len({name.casefold() for name in names}) == 4
    assert {"a.png", "a_2.png"} < set(names)
    with Image.open(overlays / "a.png") as image:
        assert image.size == (40, 48)


@pytest.mark.parametrize("place", ["", "heat", "more/heat"])
def test_overlays_among_the_images_are_refused(model, folder, place, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(model, folder, "--overlays", folder / place) == 1
    assert "would lie among the images of" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (folder / "heat").exists()


def test_overlays_beside_single_images(model, folder, tmp_path, capsys):
    assert run(model, folder / "a.png", "--overlays", folder) == 1
    assert "would lie among the images of" in capsys.readouterr().err
    assert run(model, folder / "a.png", "--overlays", folder / "heat") == 0
    assert (folder / "heat" / "a.png").exists()


def test_an_overlay_that_cannot_be_written_does_not_end_the_run(model, folder, tmp_path, capsys):
    overlays = tmp_path / "overlays"
    (overlays / "b.png").mkdir(parents=True)
    assert run(model, folder, "--overlays", overlays) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert f"Cannot write {overlays / 'b.png'} (Is a directory): free space there" in captured.err
    assert "3 images, 1 defects, 0 unreadable, 1 overlays missing" in captured.err
    assert (overlays / "a_2.png").exists()


def test_overlay_against_numpy():
    """A map of zeros and ones: two colours, and a contour where they meet."""
    inside = np.zeros((40, 40), bool)
    inside[10:20, 5:25] = True
    rgb = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    drawn = draw(rgb, Prediction(0.9, True, inside.astype(np.float32), inside, None))
    rim = inside.copy()
    rim[11:19, 6:24] = False
    assert (drawn[rim] == CONTOUR).all()
    for region, color in ((~inside, (0, 0, 128)), (inside & ~rim, (160, 0, 0))):
        expected = 0.6 * rgb[region].astype(np.float64) + 0.4 * np.array(color)
        assert abs(drawn[region] - expected).max() <= 0.5 + 1e-9
    assert np.array_equal(draw(rgb / 255, Prediction(0.9, True, inside.astype(np.float32), inside, None)), drawn)


def test_overlay_is_as_large_as_the_image():
    small = np.eye(32, dtype=np.float32)
    drawn = draw(np.zeros((64, 700, 3), np.uint8), Prediction(0.9, True, small, small > 0.5, None))
    assert drawn.shape == (64, 700, 3)
    assert drawn.dtype == np.uint8


def test_drift_is_told_and_its_window_kept(model, tmp_path, capsys):
    from .conftest import write_record

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


def test_nobody_reads_the_rows_any_more(model, folder):
    """As with ``| head``."""
    arguments = ["predict", str(model), *[str(folder / "a.png")] * 50]
    code = f"from mixedteacher_edge.__main__ import main; raise SystemExit(main({arguments!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert "Traceback" not in process.communicate()[1]
    assert process.returncode == 0
