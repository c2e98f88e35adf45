"""Objectives against references written out position by position, in float64."""

import math

import pytest
import torch

from anomalib_mixedteacher.errors import ConfigurationError
from anomalib_mixedteacher.pretraining.draw import Draw
from anomalib_mixedteacher.pretraining.objectives import OBJECTIVES, build_objective, coverage
from anomalib_mixedteacher.pretraining.scenes import Scenes


def make_scenes(identity, defect=None, change=None):
    identity = torch.as_tensor(identity)
    defect = torch.zeros(identity.shape, dtype=torch.float64) if defect is None else torch.as_tensor(defect)
    images = torch.rand(len(identity), 3, *identity.shape[1:], dtype=torch.float64)
    return Scenes(images, identity, defect.double(), torch.zeros_like(images) if change is None else change)


def halves(size=16):
    """Two images of textures 3 and 5, and two of one texture each."""
    identity = torch.full((4, size, size), 3)
    identity[0, :, size // 2 :] = 5
    identity[1, : size // 2] = 5
    identity[2] = 5
    return identity


def features(channels=6, cells=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(4, channels, cells, cells, generator=generator, dtype=torch.float64)


def test_coverage_is_the_mean_of_a_cell():
    shares = torch.zeros(1, 8, 8)
    shares[0, :2, :4] = 1
    assert coverage(shares, (2, 2)).tolist() == [[[0.5, 0.0], [0.0, 0.0]]]


class TestLabels:
    def test_textures_defects_and_what_is_neither(self):
        defect = torch.zeros(4, 16, 16)
        defect[3, :4, :4] = 1.0  # sixteen pixels and one more: the first cell
        defect[3, 5, 5] = 1.0
        defect[3, 4:8, 12:] = 0.5  # eight: neither clean nor defective
        defect[3, 0, 4] = 1.0  # one pixel: clean
        defect[3, :5, :4] = 1.0
        objective = build_objective("defect_contrast", [6], 10)
        label, usable = objective.labels(make_scenes(halves(), defect), (4, 4))
        assert label[0].tolist() == [[3, 3, 5, 5]] * 4
        assert usable[:3].all()
        assert label[3, 1, 2] == 3
        assert not usable[3, 1, 3]
        assert usable[3, 0, 1]

    def test_a_defective_cell_is_alone(self):
        defect = torch.zeros(4, 32, 32)
        defect[2:, :8, :16] = 1.0
        label, usable = build_objective("defect_contrast", [6], 10).labels(make_scenes(halves(32), defect), (4, 4))
        alone = label[2:, 0, :2].flatten()
        assert usable[2:, 0, :2].all()
        assert (alone < 0).all()
        assert len(set(alone.tolist())) == 4

    def test_without_defects_the_cell_is_left_out(self):
        defect = torch.zeros(4, 32, 32)
        defect[2, :8, :8] = 1.0
        label, usable = build_objective("contrast", [6], 10).labels(make_scenes(halves(32), defect), (4, 4))
        assert not usable[2, 0, 0]
        assert (label >= 0).all()

    def test_a_cell_with_two_textures_is_left_out(self):
        identity = torch.full((4, 16, 16), 3)
        identity[0, :, 6:] = 5
        _, usable = build_objective("contrast", [6], 10).labels(make_scenes(identity), (4, 4))
        assert usable[0].tolist() == [[True, False, True, True]] * 4


def reference_contrast(embedded, label, image, temperature):
    """Khosla et al. 2020, eq. 2, with the same texture in the same image left out of sums."""
    embedded = embedded / embedded.norm(dim=1, keepdim=True)
    losses = []
    for i in range(len(embedded)):
        others = [j for j in range(len(embedded)) if not (label[i] == label[j] and image[i] == image[j])]
        positives = [j for j in others if label[i] == label[j]]
        if positives:
            total = sum(math.exp(float(embedded[i] @ embedded[j]) / temperature) for j in others)
            shares = [math.exp(float(embedded[i] @ embedded[j]) / temperature) / total for j in positives]
            losses.append(-sum(math.log(share) for share in shares) / len(positives))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name", ["contrast", "defect_contrast", "feature_contrast"])
def test_contrast_against_the_written_out_sum(name):
    torch.manual_seed(0)
    objective = build_objective(name, [6], 10).double()
    defect = torch.zeros(4, 32, 32)
    defect[2, :8, :8] = 1.0
    scenes, maps = make_scenes(halves(32), defect), features()
    label, usable = objective.labels(scenes, (4, 4))
    keep = usable.flatten()
    embedded = objective.heads[0](maps).permute(0, 2, 3, 1).flatten(0, 2)[keep]
    image = torch.arange(4).repeat_interleave(16)[keep]
    expected = reference_contrast(embedded, label.flatten()[keep], image, objective.temperature)
    assert objective([maps], scenes, Draw(0)).item() == pytest.approx(expected, rel=1e-5)


def test_contrast_without_a_pair_is_zero_and_has_a_gradient():
    identity = torch.arange(4)[:, None, None].expand(4, 16, 16)
    maps = features().requires_grad_()
    loss = build_objective("contrast", [6], 10).double()([maps], make_scenes(identity), Draw(0))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(maps.grad, torch.zeros_like(maps))


def test_contrast_draws_no_more_positions_than_asked_for():
    objective = build_objective("contrast", [6], 10).double()
    objective.positions = 8
    one, two = (objective([features()], make_scenes(halves()), Draw(seed)).item() for seed in (0, 1))
    assert one != two  # other positions
    assert one == objective([features()], make_scenes(halves()), Draw(0)).item()


def test_identity_pools_over_the_texture_of_most_pixels():
    torch.manual_seed(0)
    objective = build_objective("identity", [6], 10).double()
    identity = torch.full((1, 16, 16), 3)
    identity[0, :, 12:] = 5
    maps = features()[:1]
    logits = objective.heads[0](maps[0, :, :, :3].mean(dim=(1, 2)))
    expected = logits.logsumexp(dim=0) - logits[3]
    torch.testing.assert_close(objective([maps], make_scenes(identity), Draw(0)), expected)


def test_defect_share_is_a_cross_entropy_of_cells():
    torch.manual_seed(0)
    objective = build_objective("defect", [6], 10).double()
    defect = torch.zeros(4, 32, 32)
    defect[0, :8, :8] = 1.0  # a whole cell
    defect[1, :4, :2] = 1.0  # eight pixels: half a defect
    probability = objective.heads[0](features()).sigmoid()[:, 0]
    target = torch.zeros(4, 4, 4, dtype=torch.float64)
    target[0, 0, 0], target[1, 0, 0] = 1.0, 0.5
    expected = -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()
    torch.testing.assert_close(objective([features()], make_scenes(halves(32), defect), Draw(0)), expected)


def test_residual_is_the_share_of_the_change_that_stays_unexplained():
    torch.manual_seed(0)
    objective = build_objective("residual", [6], 10).double()
    change = torch.zeros(4, 3, 32, 32, dtype=torch.float64)
    change[0, :, 2:4, 4:6] = torch.tensor([0.1, 0.2, 0.3])[:, None, None]  # one piece of the first cell
    change[1, :, 8:16, 24:] = -0.4  # a whole cell
    scenes = make_scenes(halves(32), change=change)
    scenes.images = (0.5 + change).to(torch.float64)
    target = torch.zeros(4, 16, 4, 4, dtype=torch.float64)
    # sign and log(1 + |log((after + 0.05) / (before + 0.05))| / 0.1)
    target[0, 1 * 4 + 2, 0, 0] = math.log1p(math.log(0.75 / 0.55) / 0.1)
    target[1, :, 1, 3] = -math.log1p(math.log(0.55 / 0.15) / 0.1)
    given = objective.heads[0](features())
    expected = (given - target).square().sum() / target.square().sum()
    torch.testing.assert_close(objective([features()], scenes, Draw(0)), expected)


def test_residual_is_relative_to_the_light():
    # one surface with one defect, in a dark and in a bright exposure
    torch.manual_seed(0)
    objective = build_objective("residual", [6], 10).double()
    clean = torch.full((4, 3, 32, 32), 0.8, dtype=torch.float64)
    after = clean.clone()
    after[:, :, :16] = 0.2

    def loss(gain):
        # brightness as the objective sees it, so that only the gain differs
        images = gain * (after + 0.05) - 0.05
        scenes = make_scenes(halves(32), change=images - (gain * (clean + 0.05) - 0.05))
        scenes.images = images
        return objective([features()], scenes, Draw(0))

    torch.testing.assert_close(loss(0.4), loss(1.0))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_layers_count_alike(name):
    torch.manual_seed(0)
    objective = build_objective(name, [6, 6], 10).double()
    if objective.heads[0].state_dict():
        objective.heads[1].load_state_dict(objective.heads[0].state_dict())
    scenes = make_scenes(halves(32))
    both = objective([features(), features()], scenes, Draw(0))
    torch.manual_seed(0)
    single = build_objective(name, [6], 10).double()([features()], scenes, Draw(0))
    torch.testing.assert_close(both, single)


def test_unknown_objective():
    with pytest.raises(ConfigurationError, match="Unknown objective 'colour'; choose one of identity"):
        build_objective("colour", [6], 10)
