"""Build the method of each config on the meta device, which needs no memory: `python -m trainer.construct < configs`.

jobs/submit.py runs this before it queues an array, in a process of its own because importing torch takes seconds.
"""

import json
import sys

from trainer.config.resolve import resolve
from trainer.environment import run_program
from trainer.errors import ConfigError


def main() -> int:
    """Build every config of a JSON list on standard input; return the exit code: 2 with one line if one fails."""
    import torch

    import models
    from models.base import DataSpec

    for document in json.load(sys.stdin):
        try:
            config = resolve(document, "config")
            with torch.device("meta"):
                models.load(config.method)(DataSpec(*config.data.shape()), **config.model_arguments()).updates()
        except (ConfigError, ValueError, TypeError, RuntimeError) as error:
            print(f"model: {document['method']} cannot be built: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    run_program(main)
