"""The Inception network of pytorch-fid; `python -m eval.features.inception` downloads its weights.

The weights are read from $TURNOUT_INCEPTION, or from the torch hub cache, where pytorch-fid itself puts them.
"""

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


def place() -> Path:
    """Where the weights are looked for, there or not."""
    given = os.environ.get("TURNOUT_INCEPTION")
    return Path(given or Path(torch.hub.get_dir()) / "checkpoints" / Path(inception.FID_WEIGHTS_URL).name).expanduser()


def fetch() -> Path:
    """Download the weights (91 MB) unless they are there; DataError if they cannot be had or are others."""
    path = place()
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(inception.FID_WEIGHTS_URL, str(path), hash_prefix=SHA256)
        except (OSError, RuntimeError) as error:
            raise DataError(f"{path}: Inception's weights cannot be fetched: {error}; {remedy()}") from None
    read(path)
    return path


def remedy() -> str:
    """What to do where the weights are missing."""
    return (
        "`python -m eval.features.inception` fetches them where there is a network, TURNOUT_INCEPTION names a file "
        f"that you have ({inception.FID_WEIGHTS_URL}), and fid_classifier needs none"
    )


def read(path: Path) -> dict[str, Tensor]:
    """The weights in a file; DataError if it is missing, or is not the one that FID is defined by."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: Inception's weights cannot be read: {error.strerror or error}; {remedy()}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise DataError(f"{path}: has sha256 {found}, Inception's weights {SHA256}; remove it; {remedy()}")
    weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return weights


def extractor(device: torch.device) -> Extractor:
    """Features as pytorch-fid has them: of RGB in [0, 1], enlarged or reduced to 299 pixels by the network itself."""
    weights = read(place())
    # Its constructor downloads: hand it what was found and checked instead.
    with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: weights):
        network = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[WIDTH]])
    # Channels last, the layout in which convolutions are fastest: half as many images again per second on a CPU.
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
    try:
        print(fetch())
    except DataError as fault:
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)
