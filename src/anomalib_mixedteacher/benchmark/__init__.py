"""Accuracy of MixedTeacher and of anomalib's models, side by side on one split."""
