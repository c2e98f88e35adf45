"""The long run of the edge detector, in short."""

import math

from anomalib_mixedteacher.benchmark.stream import run

from mixedteacher_edge import EdgeDetector


def test_run(model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    result = run(EdgeDetector(model, cache=None), folder, images=50, size=40, queue_size=3)
    assert result.in_order
    assert result.largest_difference == 0
    assert len(result.resident_mb) == 10
    assert all(value > 10 or math.isnan(value) for value in result.resident_mb)
    (error,) = result.errors
    assert str(folder / "corrupt.png") in error
    assert "order kept" in result.text()


def test_a_wrong_order_would_be_seen(model, tmp_path, monkeypatch):
    stream = EdgeDetector.stream
    monkeypatch.setattr(EdgeDetector, "stream", lambda self, *args: reversed(list(stream(self, *args))))
    assert not run(EdgeDetector(model, cache=None), tmp_path, images=40, size=40).in_order
