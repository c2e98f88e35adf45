"""Training images: what is where, and what a defect changes."""

import torch

from anomalib_mixedteacher.pretraining.defects import draw_defects
from anomalib_mixedteacher.pretraining.draw import Draw
from anomalib_mixedteacher.pretraining.scenes import Bank, draw_scenes

SIZE = 32


def flat_bank(n=6):
    """Textures that are one grey level each, so that a pixel tells its texture."""
    levels = torch.linspace(0.2, 0.8, n)
    return Bank(levels[:, None, None, None].expand(n, 3, 80, 80).contiguous(), first_identity=100)


def test_bank_is_coloured_and_half_of_it_nearly_grey():
    canvases = Bank.draw(64, 64, Draw(0)).canvases
    assert canvases.shape == (64, 3, 64, 64)
    assert canvases.min() >= 0
    assert canvases.max() <= 1
    saturation = (canvases.amax(dim=1) - canvases.amin(dim=1)).mean(dim=(1, 2))
    assert 0.3 < (saturation < 0.12).float().mean() < 0.7
    assert (canvases.std(dim=(1, 2, 3)) > 0.005).all()


def test_a_seed_fixes_bank_and_scenes():
    bank = Bank.draw(8, 64, Draw(3))
    assert torch.equal(bank.canvases, Bank.draw(8, 64, Draw(3)).canvases)
    one, two, other = (draw_scenes(bank, 8, SIZE, Draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.defect, two.defect)
    assert not torch.equal(one.images, other.images)


def test_values_are_in_range():
    scenes = draw_scenes(Bank.draw(8, 64, Draw(0)), 16, SIZE, Draw(0))
    assert scenes.images.shape == (16, 3, SIZE, SIZE)
    for values in (scenes.images, scenes.defect):
        assert values.min() >= 0
        assert values.max() <= 1


def test_change_is_what_the_defects_do_and_nothing_else():
    scenes = draw_scenes(Bank.draw(8, 64, Draw(0)), 32, SIZE, Draw(0))
    change = scenes.change.abs().amax(dim=1)
    assert (change[scenes.defect == 0] == 0).all()  # light and noise, which differ from image to image, are not in it
    assert (change.amax(dim=(1, 2)) > 0.02)[scenes.defect.amax(dim=(1, 2)) > 0.9].all()
    assert ((scenes.images - scenes.change) >= 0).all()  # the image without its defects
    assert ((scenes.images - scenes.change) <= 1).all()


def test_each_texture_is_in_several_images():
    identity = draw_scenes(flat_bank(), 24, SIZE, Draw(0)).identity
    assert identity.min() >= 100
    assert identity.max() < 106
    images = [set(image.unique().tolist()) for image in identity]
    assert all(sum(texture in image for image in images) > 1 for texture in set.union(*images))


def test_identity_is_that_of_the_texture_seen():
    """On flat textures, pixels of one identity look alike and those of two differ, light and noise aside."""
    scenes = draw_scenes(flat_bank(), 64, SIZE, Draw(0))
    checked = 0
    for image, identity, defect in zip(scenes.images.mean(dim=1), scenes.identity, scenes.defect, strict=True):
        kinds = identity.unique().tolist()
        if len(kinds) == 2 and defect.max() < 0.01 and abs(kinds[0] - kinds[1]) >= 3:
            dark, bright = (image[identity == kind].mean() for kind in kinds)
            assert bright > dark
            checked += 1
    assert checked > 2


def test_defects_change_what_they_cover_and_nothing_else():
    images = torch.rand(64, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    changed, share = draw_defects(images, (images.flip(-1),), Draw(0), share=1.0)
    difference = (changed - images).abs().amax(dim=1)
    # two defects at most, each moving a pixel by its share of at most one
    assert (difference <= 2 * share + 1e-5).all()
    assert difference[share < 1e-4].max() < 1e-3
    seen = share.flatten(1).amax(dim=1) > 0.5
    assert seen.float().mean() > 0.85  # some lie half outside
    assert (difference.flatten(1).amax(dim=1)[seen] > 0.02).float().mean() > 0.95


def test_without_defects_images_stay():
    images = torch.rand(8, 3, SIZE, SIZE)
    changed, share = draw_defects(images, (images.flip(-1),), Draw(0), share=0.0)
    assert torch.equal(changed, images)
    assert not share.any()


def test_a_share_of_the_images_has_defects():
    images = torch.full((400, 3, SIZE, SIZE), 0.5)
    _, share = draw_defects(images, (images,), Draw(0), share=0.5)
    assert 0.35 < (share.flatten(1).amax(dim=1) > 0.3).float().mean() < 0.6
