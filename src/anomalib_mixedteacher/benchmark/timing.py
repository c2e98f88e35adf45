"""Latency and throughput of exported files, all models in turn so that the machine's noise hits all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import openvino
from numpy.typing import NDArray

from anomalib_mixedteacher.benchmark.exported_file import ExportedFile

_IMAGES_PER_REQUEST = 4
_REPETITIONS_PER_ROUND = 10


def interleave(
    calls: Mapping[str, Callable[[], object]], repetitions: int, warmup: int
) -> dict[str, NDArray[np.float64]]:
    """Time each of several calls in turn, the first one being another in each repetition.

    Args:
        calls: What to time, by name.
        repetitions: How often each is timed, at least 1.
        warmup: How often each is called before, without being timed.

    Returns:
        Seconds of each repetition, ``(repetitions,)``, by name.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(-warmup, repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            calls[name]()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def latencies(
    files: Sequence[ExportedFile], image: NDArray[np.float32], threads: int | None, repetitions: int, warmup: int
) -> dict[str, NDArray[np.float64]]:
    """Time single images, with OpenVINO's latency hint.

    Args:
        files: What to time.
        image: Input ``(1, 3, H, H)`` in ``[0, 1]``, the same for all.
        threads: Threads to compute with; ``None`` leaves them to OpenVINO: all cores.
        repetitions: Timed inferences of each file.
        warmup: Inferences of each file before.

    Returns:
        Seconds of each repetition, ``(repetitions,)``, by the file's label.
    """
    calls = {}
    for file in files:
        request = _compile(file, image, "LATENCY", threads).create_infer_request()
        request.set_input_tensor(openvino.Tensor(image))
        calls[file.label] = partial(request.infer, share_outputs=True)
    return interleave(calls, repetitions, warmup)


def throughputs(
    files: Sequence[ExportedFile], image: NDArray[np.float32], threads: int | None, repetitions: int
) -> dict[str, float]:
    """Time many images at once, one image a request, with OpenVINO's throughput hint.

    Args:
        files: What to time.
        image: Input ``(1, 3, H, H)`` in ``[0, 1]``, the same for all.
        threads: Threads to compute with; ``None`` leaves them to OpenVINO: all cores.
        repetitions: A tenth of it, and at least 2, is the number of rounds; a round is four images for each of the
            requests that OpenVINO computes at once.

    Returns:
        Images a second in the median round, by the file's label.
    """
    calls: dict[str, Callable[[], object]] = {}
    images: dict[str, int] = {}
    for file in files:
        queue = openvino.AsyncInferQueue(_compile(file, image, "THROUGHPUT", threads))
        images[file.label] = _IMAGES_PER_REQUEST * len(queue)
        calls[file.label] = partial(_round, queue, image, images[file.label])
    seconds = interleave(calls, max(2, repetitions // _REPETITIONS_PER_ROUND), warmup=1)
    return {label: images[label] / float(np.median(values)) for label, values in seconds.items()}


def _compile(file: ExportedFile, image: NDArray[np.float32], hint: str, threads: int | None) -> openvino.CompiledModel:
    properties: dict[str, str | int] = {"PERFORMANCE_HINT": hint}
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    return file.compile(file.read_static(image.shape[-1]), **properties)


def _round(queue: openvino.AsyncInferQueue, image: NDArray[np.float32], images: int) -> None:
    for _ in range(images):
        queue.start_async({0: image}, share_inputs=True)
    queue.wait_all()
