"""INT8 that keeps the defects.

A defect is a small difference of two features that are nearly equal. What compares them stays in floating point:
normalisation, whitening, distance, standardisation, smoothing. So do convolutions whose sums have few products, a small
part of the time and most of the error, since roundings have little to cancel with: depthwise ones, and the first of an
EfficientNet. All else before the norms is quantised where activations are bounded, as EfficientNet-Lite0's. A network
with unbounded ones (``keep``) stays in floating point, and with it the residual sums, the gates, and the first
convolutions, behind which a weak texture is a small part of the range. Ranges are the extremes over all good images,
not their averages: what is cut off at the end of a range is a defect. Rounding changes what teacher and student differ
by. So a map that compares with good images compares with good images in INT8, whitening included.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from anomalib.models import AnomalibModule
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from anomalib_mixedteacher.components.maps import bilinear_resize
from anomalib_mixedteacher.components.standardized_map import StandardizedMap
from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.export.graph import network
from anomalib_mixedteacher.export.quality import Images, compile_exactly

MAX_IMAGES = 300  # what NNCF recommends; statistics hardly change with more
BLAMED = 5
MOST_PRODUCTS = 32  # in the sums of a convolution that stays in floating point
_INERT = {"Constant", "Parameter", "Result"}
_FLOAT_TYPES = {"Add", "AvgPool", "Multiply", "ReduceMean"}
_WHITENING = "model.anomaly_map_generator.whitening."
CONVOLUTIONS = ("Convolution", "GroupConvolution")


def float_nodes(model: openvino.Model, keep: Sequence[str] = ()) -> list[str]:
    """Find the operations that must not be quantised.

    Args:
        model: Graph of a model that compares channel-normalised features.
        keep: Parts of the names of convolutions that stay in floating point as well.

    Returns:
        Names of the norms and all that follows from them, and of convolutions whose sums have at most 32 products; with
        ``keep`` also of those convolutions, of sums, products and averages, and of the first convolutions.
    """
    nodes = model.get_ops()
    norms = [node for node in nodes if node.get_type_name() == "ReduceL2"]
    convolutions = [node for node in nodes if node.get_type_name() in CONVOLUTIONS]
    narrow = {node.get_friendly_name() for node in convolutions if _products(node) <= MOST_PRODUCTS}
    always = _reachable(norms) | narrow
    quantisable = {node.get_friendly_name() for node in nodes if node.get_type_name() not in _INERT}
    if not keep:
        return sorted(always & quantisable)
    entry = _reachable(model.get_parameters(), up_to=CONVOLUTIONS)
    sums = {node.get_friendly_name() for node in nodes if node.get_type_name() in _FLOAT_TYPES}
    first = {node.get_friendly_name() for node in convolutions} & entry
    kept = {name for name, label in _convolutions(model).items() if any(part in label for part in keep)}
    return sorted((always | sums | first | kept) & quantisable)


def _products(convolution: openvino.Node) -> int:
    """Count the products in each sum of a convolution."""
    rows = 1 if convolution.get_type_name() == "Convolution" else 2  # outputs; groups and outputs of each
    return int(np.prod(convolution.input_value(1).get_shape()[rows:]))


def _reachable(nodes: Iterable[openvino.Node], up_to: Sequence[str] = ()) -> set[str]:
    """Name nodes and all that their values reach, up to the first nodes of some types."""
    pending = list(nodes)
    names = {node.get_friendly_name() for node in pending}
    while pending:
        node = pending.pop()
        if node.get_type_name() in up_to:
            continue
        for target in (i.get_node() for o in node.outputs() for i in o.get_target_inputs()):
            if target.get_friendly_name() not in names:
                names.add(target.get_friendly_name())
                pending.append(target)
    return names


def quantize(model: openvino.Model, images: Sequence[Images], keep: Sequence[str] = ()) -> openvino.Model:
    """Quantise a network after training, on good images.

    Args:
        model: Network without resize and post-processor.
        images: Good images of shape ``(1, 3, H, W)`` in ``[0, 1]``.
        keep: See :func:`float_nodes`.

    Returns:
        The quantised network, with the same inputs and outputs.

    Raises:
        ConfigurationError: If there are no images.
    """
    settings = _settings(model, images, keep)
    return nncf.quantize(model, _dataset(images), advanced_parameters=_advanced(), **settings)


def restandardized(
    module: AnomalibModule,
    reference: openvino.Model,
    images: Sequence[Images],
    good: Sequence[Images],
    keep: Sequence[str] = (),
    tile_size: int | None = None,
    input_size: tuple[int, int] | None = None,
    **onnx_kwargs: Any,
) -> openvino.Model:
    """Convert a network anew, with the statistics that good images give once it is quantised.

    Args:
        module: A trained model.
        reference: Its network, as it is.
        images: Good images of shape ``(1, 3, H, W)`` in ``[0, 1]``, for the ranges.
        good: Those for the statistics; training's, lest other images' statistics add to what INT8 changes.
        keep: See :func:`float_nodes`.
        tile_size: Side in pixels of the images, if they are tiles.
        input_size: See :func:`~anomalib_mixedteacher.export.graph.network`.
        onnx_kwargs: Likewise.

    Returns:
        The network, not quantised; as it was where it does not compare with good images.
    """
    generator: Any = getattr(module.model, "anomaly_map_generator", None)
    if not isinstance(generator, StandardizedMap) or not generator.needs_good_statistics:
        return reference
    small = quantize(reference.clone(), images, keep)
    nodes = {node.get_friendly_name(): node for node in small.get_ops()}
    labels = {label: name for name, label in _convolutions(reference).items()}
    numbered = sorted((int(name.removeprefix(_WHITENING)), name) for name in labels if name.startswith(_WHITENING))
    whitening = [nodes[labels[name]] for _, name in numbered]
    logarithm = next(n for n in small.get_ops() if n.get_type_name() == "Log" and len(n.output(0).partial_shape) == 4)
    taps = [node.input_value(0) for node in whitening or [logarithm]]
    tapped = openvino.Model([openvino.opset13.result(tap) for tap in taps], small.get_parameters(), "tapped")
    compiled = compile_exactly(tapped)
    found = [[torch.tensor(maps) for maps in compiled(image).values()] for image in good]
    before = copy.deepcopy(generator.state_dict())
    try:
        if whitening:
            whitened: Any = generator
            whitened.set_good_comparisons(found, tile_size)
        else:
            size = (found[0][0].shape[-2], found[0][0].shape[-1])  # maps of images of other sizes are brought to it
            generator.set_good_distances(torch.cat([bilinear_resize(maps, size) for (maps,) in found]), tile_size)
        return network(module, input_size, **onnx_kwargs)
    finally:
        generator.load_state_dict(before)


def quantize_accurately(
    model: openvino.Model,
    images: Sequence[Images],
    validation: Sequence[tuple[Images, object]],
    measure: Callable[[openvino.CompiledModel, Iterable[object]], float],
    max_drop: float,
    keep: Sequence[str] = (),
) -> openvino.Model:
    """Quantise, and set layers back to float32 one by one until a measure holds.

    Args:
        model: Network without resize and post-processor.
        images: Good images of shape ``(1, 3, H, W)`` in ``[0, 1]``.
        validation: Labelled images with whatever ``measure`` needs.
        measure: Gives the quality of a compiled network on items of ``validation``; higher is better.
        max_drop: Loss of that quality to allow.
        keep: See :func:`float_nodes`.

    Returns:
        The quantised network.
    """
    return nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=_dataset(images),
        validation_dataset=nncf.Dataset(validation, lambda item: item[0]),
        validation_fn=measure,
        max_drop=max_drop,
        drop_type=nncf.DropType.ABSOLUTE,
        advanced_quantization_parameters=_advanced(),
        **_settings(model, images, keep),
    )


def _dataset(images: Sequence[Images]) -> nncf.Dataset:
    if not images:
        msg = "There are no good images to find the quantisation's ranges on: give a datamodule with training images."
        raise ConfigurationError(msg)
    return nncf.Dataset(images)


def _settings(model: openvino.Model, images: Sequence[Images], keep: Sequence[str]) -> dict[str, Any]:
    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "subset_size": len(images),
        "ignored_scope": nncf.IgnoredScope(names=float_nodes(model, keep)),
    }


def _advanced() -> nncf.AdvancedQuantizationParameters:
    return nncf.AdvancedQuantizationParameters(
        disable_bias_correction=True,  # changed nothing, at twice the time
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
    )


def blame(reference: openvino.Model, quantized: openvino.Model, images: Sequence[Images]) -> list[tuple[str, float]]:
    """Find the convolutions that quantisation itself disturbs most.

    Each quantised convolution is given the input that it has in float32, so that a layer is not blamed for what came
    before it.

    Args:
        reference: The network in float32.
        quantized: The same network, quantised.
        images: A few images of shape ``(1, 3, H, W)``.

    Returns:
        The worst layers' names, and the norm of their error relative to that of their output, worst first.
    """
    labels = _convolutions(reference)
    present = {node.get_friendly_name() for node in quantized.get_ops()}
    names = [name for name in labels if name in present]
    tapped, isolated = compile_exactly(_tapped(reference, names)), compile_exactly(_isolated(quantized, names))
    squares = np.zeros((2, len(names)))
    for image in images:
        values = tapped(image)
        inputs, expected = ([values[2 * index + end] for index in range(len(names))] for end in (0, 1))
        outputs = isolated(inputs)
        for index in range(len(names)):
            exact = expected[index].astype(np.float64)
            squares[:, index] += np.square(outputs[index] - exact).sum(), np.square(exact).sum()
    errors = np.sqrt(squares[0] / np.maximum(squares[1], np.finfo(np.float64).tiny))
    return [(labels[names[index]], float(errors[index])) for index in np.argsort(-errors)[:BLAMED]]


def _convolutions(model: openvino.Model) -> dict[str, str]:
    """Label each convolution by its weights' name, or a depthwise one, whose name is lost, by the layer before it."""
    labels: dict[str, str] = {}
    last = "the input"
    for node in model.get_ordered_ops():
        if node.get_type_name() not in CONVOLUTIONS:
            continue
        weights = node.input_value(1).get_node()
        while weights.get_type_name() != "Constant":
            weights = weights.input_value(0).get_node()
        name = weights.get_friendly_name()
        if name.endswith(".weight"):
            last = labels[node.get_friendly_name()] = name.removesuffix(".weight")
        else:
            labels[node.get_friendly_name()] = f"depthwise behind {last}"
    return labels


def _tapped(model: openvino.Model, names: list[str]) -> openvino.Model:
    """Let a network give the input and the output of each named convolution, in this order."""
    model = model.clone()
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    ends = [end for name in names for end in (nodes[name].input_value(0), nodes[name].output(0))]
    return openvino.Model([openvino.opset13.result(end) for end in ends], model.get_parameters(), "tapped")


def _isolated(model: openvino.Model, names: list[str]) -> openvino.Model:
    """Cut a network up into its named convolutions, each with an input of its own, quantisation included."""
    model = model.clone()
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    parameters = []
    for name in names:
        data = nodes[name].input(0)
        quantizer = data.get_source_output().get_node()
        parameter = openvino.opset13.parameter(data.get_partial_shape(), data.get_element_type())
        if quantizer.get_type_name() == "FakeQuantize":
            ranges = [quantizer.input_value(index) for index in range(1, 5)]
            levels = quantizer.get_attributes()["levels"]
            source = openvino.opset13.fake_quantize(parameter, *ranges, levels).output(0)
        else:
            source = parameter.output(0)
        data.replace_source_output(source)
        parameters.append(parameter)
    return openvino.Model([openvino.opset13.result(nodes[name].output(0)) for name in names], parameters, "isolated")
