"""The teachers' feature cache: what comes back, what is never used, and what is left on the disk."""

import errno
import gc
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalib_mixedteacher.components import feature_file
from anomalib_mixedteacher.components.feature_cache import FeatureCache, cache_key
from anomalib_mixedteacher.errors import CacheError, MixedTeacherError

SHAPES = {"resnet": [(3, 4, 5), (6, 2, 3)], "efficientnet": [(7, 1, 2)]}
WIDTH = sum(math.prod(shape) for shapes in SHAPES.values() for shape in shapes)
KEY = cache_key(purpose="tests")
DATA, INDEX = f"features-{KEY[:16]}.f16", f"features-{KEY[:16]}.json"
COUNT = 7


def digest(image: int) -> str:
    return hashlib.sha256(str(image).encode()).hexdigest()


def digests(images) -> list[str]:
    return [digest(image) for image in images]


def features(images, shapes=SHAPES, scale: float = 1.0) -> dict[str, list[torch.Tensor]]:
    """Features that the image alone determines, of magnitudes from 1e-9 to 1e4."""

    def of_image(image: int, seed: int, shape) -> torch.Tensor:
        rng = np.random.default_rng([image, seed])
        return torch.from_numpy(scale * rng.normal(size=shape) * 10 ** rng.uniform(-9, 3.5, shape)).float()

    return {
        name: [torch.stack([of_image(image, seed, shape) for image in images]) for seed, shape in enumerate(parts)]
        for name, parts in shapes.items()
    }


def assert_rounded(found, images) -> None:
    """Equal to float16's rounding, as numpy does it, of the image's own features."""
    expected = features(images)
    assert list(found) == list(expected)
    for name, maps in expected.items():
        assert len(found[name]) == len(maps)
        for got, original in zip(found[name], maps, strict=True):
            assert got.dtype == torch.float32
            assert got.device.type == "cpu"
            assert got.is_contiguous()
            np.testing.assert_array_equal(got.numpy(), original.numpy().astype(np.float16).astype(np.float32))


def fill(cache: FeatureCache, images) -> FeatureCache:
    cache.put(digests(images), features(images))
    return cache


def in_file(folder: Path, key: str = KEY, capacity: int = COUNT) -> FeatureCache:
    return FeatureCache(key, capacity, memory_budget=0, folder=folder)


def changed(**values):
    """An index with other values."""
    return lambda text: json.dumps(json.loads(text) | values)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(params=["memory", "file"])
def cache(request, folder):
    budget = COUNT * WIDTH * 2 - (request.param == "file")
    with FeatureCache(KEY, COUNT, budget, folder) as cache:
        yield cache


@pytest.fixture
def complete(folder) -> Path:
    """A folder with a complete file."""
    with in_file(folder) as cache:
        fill(cache, range(COUNT))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestKeeping:
    def test_round_trip_is_rounding_to_float16(self, cache):
        fill(cache, [0, 1, 2])
        fill(cache, [3, 4, 5, 6])
        assert_rounded(cache.get(digests([5, 0, 3])), [5, 0, 3])
        assert_rounded(cache.get(digests([2, 2])), [2, 2])

    def test_budget_decides_where(self, folder):
        for spare, in_memory in ((0, True), (-1, False)):
            with fill(FeatureCache(KEY, COUNT, COUNT * WIDTH * 2 + spare, folder), [0]) as cache:
                assert cache.in_memory is in_memory
                assert cache.bytes_per_image == WIDTH * 2
                assert folder.exists() is not in_memory

    @pytest.mark.parametrize("seed", range(5))
    def test_any_order_and_batch_size(self, folder, seed):
        rng = np.random.default_rng(seed)
        caches = [FeatureCache(KEY, COUNT, budget, folder / str(budget)) for budget in (0, 10**6)]
        seen: set[int] = set()
        while len(seen) < COUNT:
            images = rng.integers(COUNT, size=rng.integers(1, 5)).tolist()
            for cache in caches:
                fill(cache, images)
            seen |= set(images)
            asked = rng.integers(COUNT, size=rng.integers(1, 9)).tolist()
            for cache in caches:
                assert cache.complete is (len(seen) == COUNT)
                found = cache.get(digests(asked))
                assert (found is not None) is (set(asked) <= seen)
                if found is not None:
                    assert_rounded(found, asked)
        caches.append(in_file(folder / "0"))
        for cache in caches:
            assert_rounded(cache.get(digests(range(COUNT))), range(COUNT))
            cache.close()

    def test_equal_images_share_a_row(self, cache):
        fill(cache, [0, 1, 0, 0])
        fill(cache, [1, 2, 3, 4, 5])
        assert not cache.complete
        fill(cache, [6])
        assert cache.complete
        assert_rounded(cache.get(digests([0, 1, 0])), [0, 1, 0])

    def test_what_is_there_is_not_written_again(self, cache):
        fill(cache, [0, 1])
        cache.put(digests([1, 0]), features([4, 5]))
        assert_rounded(cache.get(digests([0, 1])), [0, 1])

    def test_part_of_a_batch_is_nothing(self, cache):
        assert cache.get(digests([0])) is None
        fill(cache, [0, 1])
        assert cache.get(digests([0, 2])) is None

    def test_changing_what_came_out_changes_nothing(self, cache):
        fill(cache, range(COUNT))
        for maps in cache.get(digests([0, 1])).values():
            for part in maps:
                part.fill_(7)
        assert_rounded(cache.get(digests([0, 1])), [0, 1])

    def test_changing_what_went_in_changes_nothing(self, cache):
        given = features([0])
        cache.put(digests([0]), given)
        given["resnet"][0].fill_(7)
        assert_rounded(cache.get(digests([0])), [0])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_other_layouts_and_types(self, cache, dtype):
        given = {n: [m.to(dtype).contiguous(memory_format=torch.channels_last) for m in maps] for n, maps in
                 features([0, 1, 2]).items()}  # fmt: skip
        cache.put(digests([0, 1, 2]), {name: given[name] for name in reversed(given)})
        cache.put(digests([3]), features([3]))
        found = cache.get(digests([3, 1]))
        assert_rounded({name: found[name] for name in SHAPES}, [3, 1])

    def test_features_with_a_gradient(self, cache):
        given = {name: [part.requires_grad_() for part in maps] for name, maps in features([0]).items()}
        cache.put(digests([0]), given)
        assert not cache.get(digests([0]))["resnet"][0].requires_grad

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
    def test_a_file_does_not_stay_in_memory(self, folder):
        with fill(in_file(folder), range(COUNT)) as cache:
            cache.get(digests([0]))
            assert "features-" not in Path("/proc/self/maps").read_text()


class TestRefusing:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -65520.0])
    def test_a_value_that_float16_has_not(self, cache, folder, value):
        fill(cache, [0])
        bad = features([1, 2])
        bad["efficientnet"][0][1, 3] = value
        with pytest.raises(CacheError, match="NaN or values beyond float16's 65504: switch the feature cache off"):
            cache.put(digests([1, 2]), bad)
        assert cache.get(digests([1])) is None
        assert_rounded(fill(cache, [1]).get(digests([0, 1])), [0, 1])

    def test_the_largest_value_is_kept(self, cache):
        given = features([0])
        given["resnet"][0][0, 0, 0, 0] = 65519.0  # rounds down to 65504
        cache.put(digests([0]), given)
        assert cache.get(digests([0]))["resnet"][0][0, 0, 0, 0] == 65504

    def test_first_value_refused_leaves_nothing(self, folder):
        with in_file(folder) as cache, pytest.raises(CacheError):
            cache.put(digests([0]), features([0], scale=math.inf))
        assert not folder.exists()

    @pytest.mark.parametrize(
        "other", [{"resnet": SHAPES["resnet"]}, SHAPES | {"efficientnet": [(7, 2, 1)]}, SHAPES | {"more": [(1, 1, 1)]}]
    )
    def test_images_of_other_shapes(self, cache, other):
        fill(cache, [0])
        with pytest.raises(CacheError, match="same shapes for all images: resize the images .*, or switch"):
            cache.put(digests([1]), features([1], other))

    @pytest.mark.parametrize("count", [1, 3])
    def test_one_digest_for_each_image(self, cache, count):
        with pytest.raises(CacheError, match="same shapes"):
            cache.put(digests(range(count)), features([0, 1]))

    def test_more_images_than_announced(self, cache):
        fill(cache, range(COUNT - 1))
        with pytest.raises(CacheError, match="More than the 7 images .* have come: keep the images as they are"):
            fill(cache, [COUNT, COUNT + 1])
        fill(cache, [COUNT - 1])
        with pytest.raises(CacheError, match="More than the 7 images"):
            fill(cache, [COUNT])
        assert_rounded(cache.get(digests(range(COUNT))), range(COUNT))

    def test_no_folder_and_too_small_a_budget(self):
        count = 12_500_000 // (WIDTH * 2) + 1
        with (
            FeatureCache(KEY, count, 12_499_999) as cache,
            pytest.raises(
                CacheError, match=rf"of {count} images need 13 MB, .* budget is 12 MB: raise it, give a folder"
            ),
        ):
            fill(cache, [0])

    def test_a_budget_beyond_the_memory(self):
        with FeatureCache(KEY, 2**48, 2**62) as cache, pytest.raises(CacheError, match=r"free memory: lower .* budget"):
            fill(cache, [0])

    def test_is_an_error_of_the_package(self):
        assert issubclass(CacheError, MixedTeacherError)
        assert issubclass(CacheError, RuntimeError)


class TestReuse:
    def test_a_complete_file_serves_at_once(self, complete):
        assert sorted(content(complete)) == [DATA, INDEX]
        with in_file(complete) as cache:
            assert cache.complete
            assert not cache.in_memory
            assert cache.bytes_per_image == WIDTH * 2
            assert_rounded(cache.get(digests([6, 0, 3, 3])), [6, 0, 3, 3])

    def test_it_serves_fewer_images_too(self, complete):
        with in_file(complete, capacity=2) as cache:
            assert_rounded(cache.get(digests([5])), [5])

    def test_not_when_more_images_will_come(self, complete):
        with in_file(complete, capacity=COUNT + 1) as cache:
            assert cache.get(digests([0])) is None
            fill(cache, range(COUNT + 1))
        with in_file(complete, capacity=COUNT + 1) as cache:
            assert_rounded(cache.get(digests([COUNT])), [COUNT])

    def test_putting_what_it_holds_leaves_it(self, complete):
        before = content(complete)
        with in_file(complete) as cache:
            cache.put(digests([0]), features([5]))
            assert_rounded(cache.get(digests([0])), [0])
        assert content(complete) == before

    def test_a_changed_image_begins_a_new_file(self, complete):
        before = content(complete)
        changed = [0, 1, 2, 3, 4, 5, 99]
        with in_file(complete) as cache:
            assert cache.get(digests([5, 99])) is None
            fill(cache, [5, 99])
            assert not cache.complete
            assert cache.get(digests([0])) is None  # not in the new file yet
            assert {name: content(complete)[name] for name in before} == before
            fill(cache, changed[:5])
            assert cache.complete
            assert_rounded(cache.get(digests(changed)), changed)
        with in_file(complete) as cache:
            assert_rounded(cache.get(digests(changed)), changed)
            assert cache.get(digests([6])) is None
        assert sorted(content(complete)) == [DATA, INDEX]

    def test_other_shapes_begin_a_new_file(self, complete):
        other = {"resnet": [(2, 2, 2)]}
        with in_file(complete) as cache:
            cache.put(digests([0]), features([0], other))
            assert cache.bytes_per_image == 16
            assert not cache.complete

    def test_begins_anew_in_memory_where_it_fits(self, complete):
        before = content(complete)
        with FeatureCache(KEY, COUNT, 10**6, complete) as cache:
            assert not cache.in_memory
            fill(cache, [99])
            assert cache.in_memory
        assert content(complete) == before

    def test_unused_files_go_after_a_month(self, complete):
        used, unused = complete / DATA, complete / f"features-{16 * '0'}.f16"
        unused.write_bytes(b"0")
        recent = complete / f"features-{16 * '1'}.f16"
        recent.write_bytes(b"0")
        foreign = complete / "features-of-mine.f16"
        foreign.write_bytes(b"0")
        now = time.time()
        for path, days in ((used, 31), (complete / INDEX, 31), (unused, 31), (recent, 29), (foreign, 400)):
            os.utime(path, (now - days * 86400,) * 2)
        with in_file(complete) as cache:
            assert_rounded(cache.get(digests([3])), [3])
        with in_file(complete, key=cache_key(purpose="other")):
            pass
        assert sorted(content(complete)) == sorted([DATA, INDEX, recent.name, foreign.name])
        with in_file(complete) as cache:
            assert cache.complete

    @pytest.mark.parametrize("row", [0, 3, COUNT - 1])
    @pytest.mark.parametrize("damage", [b"\xff\x7f", b"\x00\x00", b"\x01\x02"])
    @pytest.mark.parametrize("budget", [0, 10**6])
    def test_a_damaged_row_is_found_and_the_file_made_anew(self, complete, caplog, row, damage, budget):
        before = content(complete)
        values = bytearray(before[DATA])
        place = (row * WIDTH + WIDTH // 2) * 2
        values[place : place + 2] = damage
        assert values != before[DATA]
        (complete / DATA).write_bytes(values)
        others = [image for image in range(COUNT) if image != row]
        with FeatureCache(KEY, COUNT, budget, complete) as cache:
            assert_rounded(cache.get(digests(others)), others)
            assert cache.get(digests([row, others[0]])) is None
            assert "is damaged" in caplog.text
            assert not content(complete)
            fill(cache, [row, others[0]])
            fill(cache, range(COUNT))
            assert_rounded(cache.get(digests(range(COUNT))), range(COUNT))
        assert content(complete).keys() == (set() if budget else before.keys())

    def test_a_row_is_checked_when_it_is_first_read(self, complete, monkeypatch):
        calls = []
        crc32 = feature_file.zlib.crc32
        monkeypatch.setattr(feature_file.zlib, "crc32", lambda content: calls.append(1) or crc32(content))
        with in_file(complete) as cache:
            for _ in range(3):
                assert_rounded(cache.get(digests([2, 4, 2])), [2, 4, 2])
        assert len(calls) == 2

    def test_an_index_of_the_last_version_is_not_read(self, complete):
        index = json.loads((complete / INDEX).read_bytes())
        assert index.pop("checksums")
        written = json.dumps(index | {"format": 1}).encode()
        (complete / INDEX).write_bytes(written)
        values = (complete / DATA).read_bytes()[:-32] + hashlib.sha256(written).digest()
        (complete / DATA).write_bytes(values)
        with in_file(complete) as cache:
            assert cache.get(digests([0])) is None
            fill(cache, range(COUNT))
        with in_file(complete) as cache:
            assert_rounded(cache.get(digests([6])), [6])

    def test_another_key(self, complete):
        with in_file(complete, key=cache_key(purpose="other")) as cache:
            assert cache.get(digests([0])) is None
        same_name = KEY[:16] + "0" * 48
        with in_file(complete, key=same_name) as cache:
            assert cache.get(digests([0])) is None

    @pytest.mark.parametrize(
        "change", [lambda b: b[:-2], lambda b: b + b"\0\0", lambda b: b"", lambda b: b[:-1] + b"\0"]
    )
    def test_a_data_file_of_another_length_or_end(self, complete, change):
        path = complete / DATA
        path.write_bytes(change(path.read_bytes()))
        self.assert_replaced(complete)

    def test_no_data_file(self, complete):
        (complete / DATA).unlink()
        self.assert_replaced(complete)

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: "",
            lambda text: text[: len(text) // 2],
            lambda text: "[]",
            lambda text: "5",
            lambda text: "\x80",
            changed(format=0),
            changed(digests=5),
            changed(digests=digests(range(COUNT))[::-1]),
            changed(shapes={"resnet": ["abc"]}),
            changed(shapes=SHAPES | {"resnet": [(3, 5, 4), (6, 2, 3)]}),
        ],
    )
    def test_a_damaged_index(self, complete, change):
        path = complete / INDEX
        path.write_bytes(change(path.read_text()).encode("latin-1"))
        self.assert_replaced(complete)

    def test_another_format(self, folder, monkeypatch):
        with monkeypatch.context() as patched, in_file(folder) as cache:
            patched.setattr("anomalib_mixedteacher.components.feature_file.FORMAT", 0)
            fill(cache, range(COUNT))
        self.assert_replaced(folder)

    def test_an_index_beside_another_processes_rows(self, complete, tmp_path):
        # the same images in another order, as two processes that finish at once could leave them
        with in_file(tmp_path / "other") as cache:
            fill(cache, range(COUNT)[::-1])
        assert (tmp_path / "other" / DATA).stat().st_size == (complete / DATA).stat().st_size
        (tmp_path / "other" / DATA).replace(complete / DATA)
        self.assert_replaced(complete)

    def test_nothing_is_in_place_before_it_is_complete(self, folder):
        with fill(in_file(folder), range(COUNT - 1)):
            assert {DATA, INDEX}.isdisjoint(path.name for path in folder.iterdir())
            with in_file(folder) as second:
                assert second.get(digests([0])) is None

    def test_two_at_once(self, folder):
        with in_file(folder) as first, in_file(folder) as second:
            fill(first, [0, 1, 2])
            fill(second, [6, 5, 4, 3])
            fill(first, range(3, COUNT))
            fill(second, range(3))
            for cache in (first, second, in_file(folder)):
                assert_rounded(cache.get(digests([0, 6, 3])), [0, 6, 3])
        assert sorted(content(folder)) == [DATA, INDEX]

    @staticmethod
    def assert_replaced(folder: Path) -> None:
        with in_file(folder) as cache:
            assert not cache.complete
            assert cache.get(digests([0])) is None
            fill(cache, range(COUNT))
        with in_file(folder) as cache:
            assert_rounded(cache.get(digests(range(COUNT))), range(COUNT))


class TestNoRoom:
    MESSAGE = (
        r"^The feature cache of 1 MB cannot be written to \S+ \({}\): free space there, give another folder, or "
        r"switch the cache off\.$"
    )

    @pytest.fixture(params=["posix_fallocate", "zeros"])
    def reserve(self, request, monkeypatch):
        if request.param == "zeros":
            monkeypatch.delattr("os.posix_fallocate", raising=False)
        elif not hasattr(os, "posix_fallocate"):
            pytest.skip("this system has none")

    def test_a_full_disk(self, folder, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("os.posix_fallocate", full, raising=False)
        with in_file(folder) as cache:
            with pytest.raises(CacheError, match=self.MESSAGE.format("No space left on device")) as raised:
                fill(cache, [0])
            assert not list(folder.iterdir())
            del raised  # its traceback keeps what it passed alive: until here nothing was cleaned up by accident
            assert cache.get(digests([0])) is None

    def test_the_whole_file_is_reserved_at_once(self, folder, reserve):
        with limited(COUNT * WIDTH * 2), in_file(folder) as cache:
            with pytest.raises(CacheError, match=self.MESSAGE.format("File too large")):
                fill(cache, [0])
            assert not list(folder.iterdir())

    def test_reserved_file_is_no_sparse_one(self, folder, reserve):
        with fill(in_file(folder, capacity=3000), [0]):
            (rows,) = folder.glob("*/rows")
            assert rows.stat().st_size >= 3000 * WIDTH * 2
            assert rows.stat().st_blocks * 512 >= 3000 * WIDTH * 2

    def test_no_room_after_all(self, folder):
        with fill(in_file(folder), [0]) as cache:
            with limited(WIDTH * 2), pytest.raises(CacheError, match=self.MESSAGE.format("File too large")):
                fill(cache, [1])
            assert not list(folder.iterdir())
            assert cache.get(digests([0])) is None

    def test_old_file_survives_a_full_disk(self, complete, monkeypatch):
        before = content(complete)
        with limited(100), in_file(complete) as cache, pytest.raises(CacheError):
            fill(cache, [99])
        assert content(complete) == before

    @pytest.mark.parametrize("failing", [1, 2])
    def test_nothing_is_in_place_unless_both_files_reached_the_disk(self, folder, monkeypatch, failing):
        calls = []

        def synchronize(_):
            calls.append(sorted(path.name for path in folder.iterdir() if path.is_file()))
            if len(calls) == failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr("os.fsync", synchronize)
        with in_file(folder) as cache, pytest.raises(CacheError, match=self.MESSAGE.format("Input/output error")):
            fill(cache, range(COUNT))
        assert calls == [[]] * failing
        assert not list(folder.iterdir())

    def test_index_cannot_be_put_in_place(self, folder):
        (folder / INDEX).mkdir(parents=True)
        with in_file(folder) as cache:
            with pytest.raises(CacheError, match="cannot be written to"):
                fill(cache, range(COUNT))
            assert not content(folder)

    @pytest.mark.parametrize("below", ["", "below"])
    def test_a_folder_that_is_a_file(self, tmp_path, below):
        (tmp_path / "file").write_text("mine")
        with in_file(tmp_path / "file" / below) as cache, pytest.raises(CacheError, match="give another folder"):
            fill(cache, [0])
        assert content(tmp_path) == {"file": b"mine"}

    @pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_cannot_be_written(self, folder):
        folder.mkdir(mode=0o500)
        with in_file(folder) as cache, pytest.raises(CacheError, match=self.MESSAGE.format("Permission denied")):
            fill(cache, [0])


@contextmanager
def limited(size: int):
    """Let no file of this process grow beyond a size in bytes; the system then fails as it does on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FILLING = """
import sys
import torch
from pathlib import Path
from anomalib_mixedteacher.components.feature_cache import FeatureCache
cache = FeatureCache(sys.argv[2], 3, 0, Path(sys.argv[1]))
cache.put(["a", "b"], {"resnet": [torch.ones(2, 3, 4, 4)]})
print("filling", flush=True)
sys.stdin.read()
"""


class TestAbandoned:
    @pytest.fixture
    def process(self, folder):
        """Another process that has filled two rows of three and now waits for the end of its input."""
        command = [sys.executable, "-c", FILLING, str(folder), KEY]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "filling\n"
            (temporary,) = folder.iterdir()
            assert temporary.suffix == ".tmp"
            yield process
            process.kill()

    def test_a_killed_process(self, process, folder):
        with in_file(folder, key=cache_key(purpose="other")):
            assert len(list(folder.iterdir())) == 1  # a live process's
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(list(folder.iterdir())) == 1
        with in_file(folder) as cache:
            assert not list(folder.iterdir())
            assert cache.get(["a"]) is None

    def test_the_end_of_the_interpreter(self, process, folder):
        process.communicate()
        assert process.returncode == 0
        assert not list(folder.iterdir())

    def test_close_and_leaving(self, folder):
        cache = fill(in_file(folder), [0])
        assert list(folder.iterdir())
        cache.close()
        cache.close()
        assert not list(folder.iterdir())
        assert cache.get(digests([0])) is None
        with pytest.raises(CacheError), fill(in_file(folder), [0]) as cache:
            fill(cache, range(1, 99))
        assert not list(folder.iterdir())

    def test_a_forgotten_one(self, folder):
        cache = fill(in_file(folder), [0])
        del cache
        gc.collect()
        assert not list(folder.iterdir())

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_worker_leaves_its_parents_file(self, folder):
        cache = fill(in_file(folder), [0])
        child = os.fork()
        if child == 0:
            cache.close()
            os._exit(0)
        os.waitpid(child, 0)
        fill(cache, range(1, COUNT))
        with in_file(folder) as again:
            assert_rounded(again.get(digests(range(COUNT))), range(COUNT))

    def test_what_is_not_a_cache_stays(self, folder):
        for name in ("features-mine.tmp", "notes.tmp"):
            (folder / name).mkdir(parents=True)
            (folder / name / "file").write_text("mine")
        (folder / "features-old.tmp").write_text("mine")
        before = content(folder)
        in_file(folder).close()
        assert content(folder) == before


class TestKey:
    def test_is_a_hash_of_the_parts_in_any_order(self):
        expected = hashlib.sha256(b'{"layers": {"a": [1, 2]}, "size": [256, 256], "version": "1"}').hexdigest()
        assert cache_key(size=(256, 256), layers={"a": [1, 2]}, version="1") == expected
        assert cache_key(version="1", layers={"a": (1, 2)}, size=[256, 256]) == expected

    @pytest.mark.parametrize(
        "other", [{"size": 256, "layers": [1, 3]}, {"size": 256}, {"size": "256", "layers": [1, 2]}]
    )
    def test_any_part_changes_it(self, other):
        assert cache_key(**other) != cache_key(size=256, layers=[1, 2])

    def test_only_plain_values(self):
        with pytest.raises(TypeError, match="not JSON serializable"):
            cache_key(transform=object())


def test_features_come_and_go_under_autocast():
    with FeatureCache(KEY, COUNT, 10**6) as cache, torch.autocast("cpu"):
        cache.put(digests(range(3)), features(range(3)))
        assert_rounded(cache.get(digests([2, 0])), [2, 0])
