"""Post-processors: thresholds from labelled validation images, or from good ones with a budget for false alarms."""
