"""Faster students are the same students."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim import Adam

from anomalib_mixedteacher.components import speedups
from anomalib_mixedteacher.components.speedups import (
    adapt_restored,
    is_asynchronous,
    slow_down,
    speed_up,
    students_context,
    suits_channels_last,
    suits_fused_adam,
)
from anomalib_mixedteacher.models.mixed_teacher.torch_model import MixedTeacherModel
from anomalib_mixedteacher.models.mkd.torch_model import MkdModel
from anomalib_mixedteacher.models.msfd.torch_model import MsfdModel

MODELS = [MixedTeacherModel, MkdModel, MsfdModel]


@pytest.fixture
def students() -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.ModuleDict({"one": nn.Sequential(*layers), "two": nn.Sequential(nn.Conv2d(3, 2, 1))})


@pytest.mark.parametrize("fused", [False, True])
def test_a_restored_adam_goes_on_as_this_run_computes(students, fused):
    """Its moments come in the other run's order of memory, and in the form that was fastest there."""

    def step(students, optimizer):
        optimizer.zero_grad()
        images = torch.linspace(-1, 1, 2 * 3 * 36).sin().reshape(2, 3, 6, 6)
        sum(student(images).square().mean() for student in students.values()).backward()
        optimizer.step()

    students = students.double()
    torch.set_default_dtype(torch.float64)
    try:
        if not fused:
            speed_up(students, channels_last=True, compiled=False)
        before = Adam(students.parameters(), lr=0.01, fused=not fused)
        for _ in range(3):
            step(students, before)
        resumed = copy.deepcopy(students)
        if fused:
            speed_up(resumed, channels_last=True, compiled=False)
        else:
            resumed = resumed.to(memory_format=torch.contiguous_format)
            for parameter in resumed.parameters():
                parameter.data = parameter.data.contiguous()
        after = Adam(resumed.parameters(), lr=0.01, fused=fused)
        after.load_state_dict(copy.deepcopy(before.state_dict()))
        adapt_restored(after)
        assert all(group["fused"] is fused for group in after.param_groups)
        for _ in range(3):
            step(students, before)
            step(resumed, after)
    finally:
        torch.set_default_dtype(torch.float32)
    for parameter, expected in zip(resumed.parameters(), students.parameters(), strict=True):
        assert after.state[parameter]["exp_avg"].stride() == parameter.stride()
        # a bias before batch normalisation has a gradient of rounding errors, which Adam brings to full size
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-7)


@pytest.fixture
def graphs(monkeypatch) -> list:
    """What was compiled, by a back end that runs it as it is."""
    found = []

    def note(graph, _):
        found.append(graph)
        return graph

    monkeypatch.setitem(speedups.COMPILE_ARGUMENTS, "backend", note)
    torch.compiler.reset()
    return found


def outputs_and_gradients(students, images) -> dict[str, torch.Tensor]:
    maps = [level for student in students.values() for level in student(images)]
    sum(level.square().mean() for level in maps).backward()
    found = {f"map {index}": level.detach() for index, level in enumerate(maps)}
    found |= {name: weight.grad.clone() for name, weight in students.named_parameters()}
    return found | {name: value.clone() for name, value in students.named_buffers()}


@pytest.mark.parametrize("model", MODELS)
def test_channels_last_computes_the_same(model):
    """In float64: what float32 rounds, the first steps of Adam magnify a thousandfold."""
    torch.manual_seed(0)
    students = model().students.double()
    faster = copy.deepcopy(students)
    speed_up(faster, channels_last=True, compiled=False)
    weights = [weight for weight in faster.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = outputs_and_gradients(students, images)
    found = outputs_and_gradients(faster, images.contiguous(memory_format=torch.channels_last))
    assert found["map 0"].is_contiguous(memory_format=torch.channels_last)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)
    slow_down(faster)
    assert all(weight.is_contiguous() for weight in weights)
    assert faster.state_dict().keys() == students.state_dict().keys()
    for before, after in zip(students.parameters(), faster.parameters(), strict=True):
        assert torch.equal(before, after)


def test_an_optimizer_keeps_its_weights(students):
    optimizer = torch.optim.SGD(students.parameters(), lr=1.0)
    speed_up(students, channels_last=True, compiled=False)
    before = students["one"][0].weight.clone()
    students["one"](torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    slow_down(students)
    assert not torch.equal(students["one"][0].weight, before)


def test_compiled_students_have_the_same_names_and_can_be_copied(students, graphs):
    before = copy.deepcopy(students)
    speed_up(students, channels_last=False, compiled=True)
    assert list(students.state_dict()) == list(before.state_dict())
    images = torch.randn(2, 3, 8, 8)
    for name, student in students.items():
        for other in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
            assert torch.equal(other.train(False)(images), before[name].train(False)(images))
    assert not graphs
    for name, student in students.items():
        assert torch.equal(student.train(False)(images), before[name].train(False)(images))
    assert len(graphs) == 2
    slow_down(students)
    students["one"](images[:, :, :7])
    assert len(graphs) == 2


def test_only_what_has_gradients_is_compiled(students, graphs):
    speed_up(students, channels_last=False, compiled=True)
    for compiled in (True, False):
        with torch.no_grad(), students_context(compiled):
            students["one"](torch.ones(1, 3, 8, 8))
        assert len(graphs) == (0 if compiled else 1)
    with students_context(compiled=True):
        students["one"](torch.ones(1, 3, 8, 8))
    assert len(graphs) == 2


@pytest.mark.parametrize("suits", [suits_channels_last, suits_fused_adam])
def test_where_it_is_faster(suits):
    assert suits(torch.device("cpu"), "32-true")
    assert not suits(torch.device("cpu"), "bf16-mixed")
    assert not suits(torch.device("cuda", 0), "32-true")


def test_what_is_asynchronous():
    assert not is_asynchronous(torch.device("cpu"))
    assert is_asynchronous(torch.device("cuda", 0))
