"""The OpenVINO graph of a model, put together from its parts: resize, network, post-processor."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openvino
import torch
from anomalib.data import InferenceBatch
from anomalib.models import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from torch import nn
from torchvision.transforms.v2 import Compose, Resize

from anomalib_mixedteacher.components.pre_processing import (
    BILINEAR,
    AntialiasedPreProcessor,
    AntialiasedResize,
    check_uncropped,
)
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.post_processing import F1PostProcessor, NormalCalibratedPostProcessor
from mixedteacher_edge.graph import RAW_MAP, RAW_SCORE


def resize_of(module: AnomalibModule) -> Resize | None:
    """Find the bilinear, antialiased resize to a fixed size that a model's transform starts with.

    Args:
        module: A model.

    Returns:
        The resize; ``None`` where the transform starts with something else.
    """
    transform = module.pre_processor.transform if isinstance(module.pre_processor, PreProcessor) else None
    first = transform.transforms[0] if isinstance(transform, Compose) and len(transform.transforms) else None
    if not isinstance(first, Resize) or not first.antialias or first.interpolation not in BILINEAR:
        return None
    return first if first.size is not None and len(first.size) == 2 else None


def network(module: AnomalibModule, input_size: tuple[int, int] | None = None, **onnx_kwargs: Any) -> openvino.Model:
    """Convert a model up to its raw score and map, without resize and post-processor.

    Args:
        module: A trained model.
        input_size: Height and width of the input, used where the transform does not start with a resize; ``None``
            leaves them open.
        onnx_kwargs: Passed to ``torch.onnx.export``.

    Raises:
        ConfigurationError: If the transform crops.

    Returns:
        Graph from images ``(B, 3, H, W)`` in ``[0, 1]`` to ``pred_score`` and ``anomaly_map``, not normalised; if the
        transform starts with a resize, ``H`` and ``W`` are the sizes behind it.
    """
    check_uncropped(getattr(module.pre_processor, "transform", None))
    resize = resize_of(module)
    with _without_ends(module, resize is not None), _quiet(), tempfile.TemporaryDirectory() as folder:
        size = input_size if resize is None else (resize.size[0], resize.size[1])
        path = module.to_onnx(folder, input_size=size, **onnx_kwargs)
        model = openvino.convert_model(path)
    for name, friendly in (("pred_score", RAW_SCORE), ("anomaly_map", RAW_MAP)):
        model.output(name).get_node().input_value(0).get_node().set_friendly_name(friendly)
    return model


def with_resize(model: openvino.Model, input_size: tuple[int, int] | None) -> openvino.Model:
    """Let a network of fixed input size take images of another, or of any size.

    Two matrix products, rather than OpenVINO's own antialiased ``Interpolate``: for each new size of images that one
    takes a quarter of a second and keeps 20 MB at 300 x 400 pixels, and takes 18 seconds at 3000 x 4000.

    Args:
        model: Graph with an input ``(B, 3, H, W)`` of fixed ``H`` and ``W``.
        input_size: Height and width of the images; ``None`` for any.

    Returns:
        The graph with the resize in front.
    """
    shape = model.input(0).partial_shape
    size = (shape[2].get_length(), shape[3].get_length())
    if input_size is not None and size == tuple(input_size):
        return model
    example = torch.zeros(2, 3, size[0] + 1, size[1] + 2)  # of no size that the tracing could take for a special case
    batch = -1 if shape[0].is_dynamic else shape[0].get_length()
    with _quiet():
        head = openvino.convert_model(
            AntialiasedResize(size), example_input=example, input=[batch, 3, *(input_size or (-1, -1))]
        )
    names = model.input(0).get_names()
    for target in model.input(0).get_target_inputs():
        target.replace_source_output(head.output(0).get_node().input_value(0))
    head.input(0).set_names(names)
    return openvino.Model(model.get_results(), head.get_parameters(), model.get_friendly_name())


def with_post_processor(model: openvino.Model, post_processor: nn.Module | None) -> openvino.Model:
    """Put a post-processor behind a network.

    Args:
        model: Graph with outputs ``pred_score`` and ``anomaly_map``, not normalised.
        post_processor: anomalib's or this package's; ``None`` leaves the graph as it is.

    Returns:
        Graph with the post-processor's outputs, in the order and by the names of anomalib's ``InferenceBatch``.
    """
    if post_processor is None:
        return model
    sources = [model.output("pred_score"), model.output("anomaly_map")]
    examples = tuple(torch.zeros([2 if d.is_dynamic else d.get_length() for d in s.partial_shape]) for s in sources)
    tail_module = _Tail(post_processor).eval()
    with _quiet():
        tail = openvino.convert_model(tail_module, example_input=examples)
    for parameter, source in zip(tail.get_parameters(), sources, strict=True):
        parameter.output(0).replace(source.get_node().input_value(0))
    with torch.no_grad():
        names = [name for name, value in tail_module.predict(*examples)._asdict().items() if value is not None]
    for result, name in zip(tail.get_results(), names, strict=True):
        result.input_value(0).set_names({name})
    # the network's own outputs carried these names
    for source in sources:
        value = source.get_node().input_value(0)
        if not any(result.input_value(0) == value for result in tail.get_results()):
            value.set_names({value.get_node().get_friendly_name()})
    return openvino.Model(tail.get_results(), model.get_parameters(), "anomalib_mixedteacher")


class _Tail(nn.Module):
    """A post-processor with tensors for inputs and outputs, for tracing."""

    def __init__(self, post_processor: nn.Module) -> None:
        super().__init__()
        self.post_processor = post_processor

    def predict(self, pred_score: torch.Tensor, anomaly_map: torch.Tensor) -> InferenceBatch:
        return self.post_processor(InferenceBatch(pred_score=pred_score, anomaly_map=anomaly_map))

    def forward(self, pred_score: torch.Tensor, anomaly_map: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(value for value in self.predict(pred_score, anomaly_map) if value is not None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence doubts of tracing, whose constants are constant, and the exporter's hundreds of lines on merging them."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _exportable(transform: Any, without_resize: bool) -> PreProcessor | None:
    """Make a pre-processor of a transform, or of what follows its resize, that resizes in the graph as in training."""
    if without_resize:
        rest = transform.transforms[1:]
        return AntialiasedPreProcessor(Compose(rest)) if rest else None
    return AntialiasedPreProcessor(transform)


@contextmanager
def _without_ends(module: AnomalibModule, without_resize: bool) -> Iterator[None]:
    """Take post-processor and resize off a model for the time of its conversion."""
    before, after = module.pre_processor, module.post_processor
    if type(after) not in {PostProcessor, F1PostProcessor, NormalCalibratedPostProcessor, type(None)}:
        # traced on an example, another one could hide what depends on the image
        msg = f"The post-processor {type(after).__name__} cannot be exported: use anomalib's or this package's."
        raise ConfigurationError(msg)
    training = module.training
    try:
        module.post_processor = None
        # another class may do more in its forward
        if isinstance(before, PreProcessor) and type(before) in {PreProcessor, AntialiasedPreProcessor}:
            module.pre_processor = _exportable(before.transform, without_resize)
        yield
    finally:
        module.pre_processor, module.post_processor = before, after
        module.train(training)
