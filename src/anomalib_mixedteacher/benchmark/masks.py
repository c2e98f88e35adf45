"""Whether a folder's masks are those of its defective images, by the rule by which anomalib's Folder pairs them."""

from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_mixedteacher.errors import DataError


def check_masks(defective: Path, masks: Path) -> None:
    """Refuse masks that Folder would not pair with the images: the n-th of each, and a mask's name holds its image's.

    Args:
        defective: Folder of the defective images.
        masks: Folder of their masks.

    Raises:
        DataError: If an image has no mask, or a mask no image.
    """
    images, drawn = _images(defective), _images(masks)
    if len(images) == len(drawn) and all(i.stem in m.stem for i, m in zip(images, drawn, strict=True)):
        return
    stems = {image.stem for image in images}
    # the longest name that fits, so that 10_mask is the mask of 10 and not of 1
    owners = {mask: max((stem for stem in stems if stem in mask.stem), key=len, default=None) for mask in drawn}
    if lacking := next((image for image in images if image.stem not in owners.values()), None):
        msg = f"{lacking} has no mask in {masks}: draw it and give it the same name, or take {masks} away."
    elif stray := next((mask for mask, owner in owners.items() if owner is None), None):
        msg = f"{stray} is the mask of no image in {defective}: take it away, or give it the name of its image."
    else:
        msg = f"The masks in {masks} and the images in {defective} do not pair one by one: give both the same names."
    raise DataError(msg)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
