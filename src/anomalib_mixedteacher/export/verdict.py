"""The end of an exported graph, from raw score and map to the verdict: put on and taken off, without torch."""

from collections.abc import Mapping

import numpy as np
import openvino
from openvino import opset13

from anomalib_mixedteacher.calibration.thresholds import Threshold, rescale
from anomalib_mixedteacher.errors import ExportedModelError

RAW_SCORE, RAW_MAP = "raw_pred_score", "raw_anomaly_map"


def raw(model: openvino.Model) -> openvino.Model:
    """Take the verdict off a graph again.

    Args:
        model: A graph that this package exported.

    Returns:
        Graph with outputs ``pred_score`` and ``anomaly_map``, not normalised.

    Raises:
        ExportedModelError: If the graph was exported otherwise.
    """
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    if RAW_SCORE not in nodes or RAW_MAP not in nodes:
        msg = (
            "This model was not exported by anomalib-mixedteacher, so its raw scores cannot be reached: export the "
            "checkpoint again with this version."
        )
        raise ExportedModelError(msg)
    outputs = []
    for friendly, name in ((RAW_SCORE, "pred_score"), (RAW_MAP, "anomaly_map")):
        output = nodes[friendly].output(0)
        output.set_names({name})
        outputs.append(opset13.result(output))
    return openvino.Model(outputs, model.get_parameters(), "raw")


def with_thresholds(model: openvino.Model, thresholds: Mapping[str, Threshold]) -> openvino.Model:
    """Let a graph judge by calibrated thresholds.

    Args:
        model: Graph with outputs ``pred_score`` and ``anomaly_map``, not normalised.
        thresholds: Those of ``image`` and ``pixel``.

    Returns:
        Graph with the outputs of anomalib's ``InferenceBatch``, by its names and in its order: ``pred_score``,
        ``pred_label``, ``anomaly_map`` and ``pred_mask``; 0.5 is the threshold, which an alarm exceeds.
    """
    results = []
    for kind, raw_name, name, verdict in (
        ("image", RAW_SCORE, "pred_score", "pred_label"),
        ("pixel", RAW_MAP, "anomaly_map", "pred_mask"),
    ):
        source = model.output(name).get_node().input_value(0)
        threshold, unit = (_constant(value) for value in (thresholds[kind].value, thresholds[kind].unit))
        scaled = rescale(source.get_node(), threshold, unit, opset13.absolute, _constant)
        alarm = opset13.greater(scaled, _constant(0.5))
        source.set_names({raw_name})  # it carried the name of the scaled one
        for node, output in ((scaled, name), (alarm, verdict)):
            node.output(0).set_names({output})
            results.append(opset13.result(node))
    return openvino.Model(results, model.get_parameters(), "anomalib_mixedteacher")


def _constant(value: float) -> openvino.Node:
    return opset13.constant(value, np.float32)
