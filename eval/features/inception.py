"""The Inception network of pytorch-fid; `python -m eval.features.inception` downloads its weights.

The weights are read from $TURNOUT_INCEPTION, or from the torch hub cache, where pytorch-fid itself puts them.
"""

import argparse
import hashlib
import io
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from pytorch_fid import inception
from torch import Tensor

from eval.features.extractor import Extractor
from trainer.errors import DataError

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WIDTH = 2048  # the last pooling, as FID is defined


def weights_path() -> Path:
    """Return the path of the weights, present or not."""
    configured = os.environ.get("TURNOUT_INCEPTION")
    return Path(
        configured or Path(torch.hub.get_dir()) / "checkpoints" / Path(inception.FID_WEIGHTS_URL).name
    ).expanduser()


def fetch() -> Path:
    """Download the weights (91 MB) if they are missing; DataError if that fails or they are not the right ones."""
    path = weights_path()
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(inception.FID_WEIGHTS_URL, str(path), hash_prefix=SHA256)
        except (OSError, RuntimeError) as error:
            raise DataError(f"{path}: Inception's weights cannot be downloaded: {error}; {remedy()}") from None
    read(path)
    return path


def remedy() -> str:
    """Say what to do if the weights are missing."""
    return (
        "`python -m eval.features.inception` downloads them, TURNOUT_INCEPTION names a file that you have "
        f"({inception.FID_WEIGHTS_URL}); fid_classifier needs none"
    )


def read(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file; DataError if it is missing, or not the file that FID is defined by."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: Inception's weights cannot be read: {error.strerror or error}; {remedy()}") from None
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SHA256:
        raise DataError(f"{path}: has sha256 {sha256}, Inception's weights {SHA256}; remove it; {remedy()}")
    weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return weights


def extractor(device: torch.device) -> Extractor:
    """Return the features of pytorch-fid: of RGB in [0, 1], resized to 299 pixels by the network itself."""
    weights = read(weights_path())
    # The constructor downloads weights: give it those that were checked instead.
    with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: weights):
        network = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[WIDTH]])
    # Convolutions are fastest in the channels-last layout: 1.5 times as many images per second on a CPU.
    network = network.to(device).to(memory_format=torch.channels_last).eval()

    def function(images: Tensor) -> Tensor:
        rgb = images.float().div(255).expand(-1, 3, -1, -1)
        features: Tensor = network(rgb.contiguous(memory_format=torch.channels_last))[0]
        return features.flatten(1)

    return Extractor(
        name="inception-2015-12-05",
        sha256=SHA256,
        width=WIDTH,
        batch=50,
        resize="bilinear to 299 px, not antialiased, by pytorch-fid",
        function=function,
        device=device,
        remedy="the weights are right, so try another device (CUDA_VISIBLE_DEVICES= leaves the CPU)",
    )


if __name__ == "__main__":
    argparse.ArgumentParser("python -m eval.features.inception", description=fetch.__doc__).parse_args()
    try:
        print(fetch())
    except DataError as fault:
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)
