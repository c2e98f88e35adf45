"""Multiply-adds of an OpenVINO graph."""

from math import prod

import openvino

from anomalib_mixedteacher.errors import ExportedModelError


def count_macs(model: openvino.Model) -> int:
    """Count the multiply-adds of convolutions and matrix products, which are nearly all of a network's work.

    Args:
        model: A graph whose shapes are static.

    Returns:
        Multiply-adds of one inference.

    Raises:
        ExportedModelError: If a shape depends on more than the input's size.
    """
    return sum(_COUNTERS[node.get_type_name()](node) for node in model.get_ops() if node.get_type_name() in _COUNTERS)


def _shape(port: openvino.Input | openvino.Output) -> list[int]:
    shape = port.get_partial_shape()
    if shape.is_dynamic:
        msg = f"The shape {shape} within the graph is not fixed by the input's size: export with a fixed input size."
        raise ExportedModelError(msg)
    return list(shape.to_shape())


# Shapes of a node's ports and not of its constants: in INT8 files weights stand behind conversions and scalings.
def _convolution(node: openvino.Node) -> int:
    """Each output is a sum over weights ``(out, in, *kernel)``."""
    return prod(_shape(node.output(0))) * prod(_shape(node.input(1))[1:])


def _group_convolution(node: openvino.Node) -> int:
    """Each output is a sum over weights ``(groups, out, in, *kernel)``."""
    return prod(_shape(node.output(0))) * prod(_shape(node.input(1))[2:])


def _transposed_convolution(node: openvino.Node) -> int:
    """Each input is spread by weights ``(in, out, *kernel)``."""
    return prod(_shape(node.input(0))) * prod(_shape(node.input(1))[1:])


def _transposed_group_convolution(node: openvino.Node) -> int:
    """Each input is spread by weights ``(groups, in, out, *kernel)``."""
    return prod(_shape(node.input(0))) * prod(_shape(node.input(1))[2:])


def _matrix_product(node: openvino.Node) -> int:
    left = _shape(node.input(0))
    inner = left[-2] if node.get_attributes()["transpose_a"] and len(left) > 1 else left[-1]
    return prod(_shape(node.output(0))) * inner


_COUNTERS = {
    "Convolution": _convolution,
    "GroupConvolution": _group_convolution,
    "ConvolutionBackpropData": _transposed_convolution,
    "GroupConvolutionBackpropData": _transposed_group_convolution,
    "MatMul": _matrix_product,
}
