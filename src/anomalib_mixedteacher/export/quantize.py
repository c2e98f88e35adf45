"""INT8 that keeps the defects.

A defect is a small difference of two features that are nearly equal, so what forms the difference stays in float32:
pooling of the features, their normalisation, distance, fusion and smoothing. Which layers of the networks stay as well
was measured; see docs/edge.md.
"""

from collections.abc import Callable, Iterable, Sequence

import nncf
import numpy as np
import openvino
from numpy.typing import NDArray

from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.export.quality import Images, compile_exactly

MAX_IMAGES = 300  # what NNCF recommends; statistics hardly change with more
BLAMED = 5
_INERT = {"Constant", "Parameter", "Result"}
CONVOLUTIONS = ("Convolution", "GroupConvolution")


def float_nodes(model: openvino.Model) -> list[str]:
    """Find the operations that must not be quantised: everything from the features' comparison on.

    Args:
        model: Graph of a model that compares channel-normalised features.

    Returns:
        Names of the norms, of all that follows from them, and of the poolings that lead only there.
    """
    pending = [node for node in model.get_ops() if node.get_type_name() == "ReduceL2"]
    names = {node.get_friendly_name() for node in pending}
    while pending:
        for target in (i.get_node() for o in pending.pop().outputs() for i in o.get_target_inputs()):
            if target.get_friendly_name() not in names:
                names.add(target.get_friendly_name())
                pending.append(target)
    before = [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() == "AvgPool"
        and all(i.get_node().get_friendly_name() in names for o in node.outputs() for i in o.get_target_inputs())
    ]
    quantisable = {node.get_friendly_name() for node in model.get_ops() if node.get_type_name() not in _INERT}
    return sorted((names | set(before)) & quantisable)


def quantize(model: openvino.Model, images: Sequence[Images]) -> openvino.Model:
    """Quantise a network after training, on good images.

    Args:
        model: Network without resize and post-processor.
        images: Good images of shape ``(1, 3, H, W)`` in ``[0, 1]``.

    Returns:
        The quantised network, with the same inputs and outputs.

    Raises:
        ConfigurationError: If there are no images.
    """
    return nncf.quantize(model, _dataset(images), **_settings(model, images))


def quantize_accurately(
    model: openvino.Model,
    images: Sequence[Images],
    validation: Sequence[tuple[Images, object]],
    measure: Callable[[openvino.CompiledModel, Iterable[object]], float],
    max_drop: float,
) -> openvino.Model:
    """Quantise, and set layers back to float32 one by one until a measure holds.

    Args:
        model: Network without resize and post-processor.
        images: Good images of shape ``(1, 3, H, W)`` in ``[0, 1]``.
        validation: Labelled images with whatever ``measure`` needs.
        measure: Gives the quality of a compiled network on items of ``validation``; higher is better.
        max_drop: Loss of that quality to allow.

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
        **_settings(model, images),
    )


def _dataset(images: Sequence[Images]) -> nncf.Dataset:
    if not images:
        msg = "There are no good images to find the quantisation's ranges on: give a datamodule with training images."
        raise ConfigurationError(msg)
    return nncf.Dataset(images)


def _settings(model: openvino.Model, images: Sequence[Images]) -> dict[str, object]:
    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "subset_size": len(images),
        "ignored_scope": nncf.IgnoredScope(names=float_nodes(model)),
    }


def blame(reference: openvino.Model, quantized: openvino.Model, images: Sequence[Images]) -> list[tuple[str, float]]:
    """Find the convolutions at whose output quantisation adds most error.

    Args:
        reference: The network in float32.
        quantized: The same network, quantised.
        images: A few images of shape ``(1, 3, H, W)``.

    Returns:
        The worst layers' names and the error that they add, relative to their output's norm, worst first.
    """
    layers = _convolutions(reference)
    # In the order of execution: a layer's own error is what exceeds its input's.
    errors = _relative_errors(reference, quantized, list(layers), images)
    added = {}
    previous: dict[str, float] = {}
    for name, error in errors.items():
        branch = layers[name].split("|")[0]
        added[layers[name].split("|")[1]] = max(0.0, error**2 - previous.get(branch, 0.0) ** 2) ** 0.5
        previous[branch] = error
    return sorted(added.items(), key=lambda item: -item[1])[:BLAMED]


def _convolutions(model: openvino.Model) -> dict[str, str]:
    """Name convolutions by their weights: ``branch|name``; a depthwise one by the layer before it."""
    named: dict[str, str] = {}
    last = "?"
    for node in model.get_ordered_ops():
        if node.get_type_name() not in CONVOLUTIONS:
            continue
        weights = node.input_value(1).get_node()
        while weights.get_type_name() != "Constant":
            weights = weights.input_value(0).get_node()
        name = weights.get_friendly_name()
        label = name.removesuffix(".weight") if name.endswith(".weight") else f"depthwise after {last}"
        last = label if name.endswith(".weight") else last
        branch = ".".join(last.split(".")[:3])
        named[node.get_friendly_name()] = f"{branch}|{label}"
    return named


def _relative_errors(
    reference: openvino.Model, quantized: openvino.Model, names: list[str], images: Sequence[Images]
) -> dict[str, float]:
    both = [_with_outputs(model, names) for model in (reference, quantized)]
    shared = [name for name in names if all(name in found for _, found in both)]
    difference, norm = dict.fromkeys(shared, 0.0), dict.fromkeys(shared, 0.0)
    compiled = [(compile_exactly(model), found) for model, found in both]
    for image in images:
        values: list[dict[str, NDArray[np.float32]]] = []
        for model, found in compiled:
            result = model(image)
            values.append({name: result[found[name]] for name in shared})
        for name in shared:
            difference[name] += float(np.square(values[1][name].astype(np.float64) - values[0][name]).sum())
            norm[name] += float(np.square(values[0][name].astype(np.float64)).sum())
    return {name: (difference[name] / max(norm[name], 1e-30)) ** 0.5 for name in shared}


def _with_outputs(model: openvino.Model, names: list[str]) -> tuple[openvino.Model, dict[str, int]]:
    clone = model.clone()
    nodes = {node.get_friendly_name(): node for node in clone.get_ops()}
    found = {name: index for index, name in enumerate(name for name in names if name in nodes)}
    results = [openvino.opset13.result(nodes[name].output(0)) for name in found]
    return openvino.Model(results, clone.get_parameters(), "inspected"), found
