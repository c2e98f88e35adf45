"""The edge runtime, a distribution of its own: see :mod:`mixedteacher_edge`."""

from mixedteacher_edge import *  # noqa: F403
