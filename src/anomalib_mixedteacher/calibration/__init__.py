"""Thresholds from good images alone, with a budget for false alarms.

The mathematics in :mod:`.conformal` needs numpy only, so that it runs beside the camera as well.
"""
