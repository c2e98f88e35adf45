"""The colours that every teacher sees: ImageNet's mean and deviation, whatever it was trained on."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
