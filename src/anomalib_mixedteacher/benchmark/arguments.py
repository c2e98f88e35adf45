"""Arguments of models on the benchmarks' command lines."""

import json
import re
from typing import Any

from anomalib_mixedteacher.errors import ConfigurationError


def parse_arguments(pairs: str) -> dict[str, Any]:
    """Parse arguments of a model.

    Args:
        pairs: ``key=value,...`` with values in JSON.

    Returns:
        Values by key.

    Raises:
        ConfigurationError: If they cannot be read.
    """
    try:
        return dict(json.loads("{" + re.sub(r"(\w+)=", r'"\1":', pairs) + "}"))
    except ValueError as error:
        msg = f'Cannot read the arguments {pairs!r}: write key=value,... with strings in quotes, as in key="text".'
        raise ConfigurationError(msg) from error
