"""Share of samples in which a face detector finds a face (Viola & Jones, CVPR 2001), and of test images.

The detector is OpenCV's cascade for frontal faces, which its package includes: pip install -e '.[faces]'.
Metrics: `face_rate`, a share of SAMPLES images with Wilson's interval; that of test images is in the provenance.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.intervals import wilson_interval
from eval.metrics import Metric
from eval.record import Result
from eval.sampling import draw_samples
from eval.trial import TrainedTrial
from trainer.errors import ConfigError

METRIC = Metric(needs="sample", higher_is_better=True)
SAMPLES = 1000
CASCADE = "haarcascade_frontalface_alt2.xml"
SIDE = 128  # pixels that an image is resized to: the cascade was trained on faces of 20
BORDER = 32  # pixels added at each edge, because cropped photographs have no margin around the face

Images = NDArray[np.uint8]  # [n, c, h, w], grey or RGB


def evaluate(trial: TrainedTrial) -> Result:
    """Detect faces in samples and in test images; ConfigError if OpenCV is missing."""
    has_face, facts = load_detector(f"{trial.run.path}: eval.metrics: face_rate")
    domain, seed = next(iter(trial.domains)), trial.config.train.seed
    fakes = iterate_images(chunk.cpu().numpy() for chunk in draw_samples(trial, SAMPLES, seed, "face_rate"))
    faces = sum(map(has_face, fakes))
    real = trial.arrays(domain, "test").images[:SAMPLES]
    result = Result({"face_rate": faces / SAMPLES}, {"face_rate": wilson_interval(faces, SAMPLES)})
    of_real = {"set": trial.domains[domain], "split": "test", "n": len(real)}
    of_real["face_rate"] = sum(map(has_face, iterate_images([real]))) / len(real)
    result.provenance["face_rate"] = facts | {"n": SAMPLES, "seed": seed, "step": trial.step, "test images": of_real}
    return result


def iterate_images(chunks: Iterable[Images]) -> Iterator[Images]:
    """Yield the images [c, h, w] of chunks [n, c, h, w]."""
    return (image for chunk in chunks for image in chunk)


def load_detector(prefix: str) -> tuple[Callable[[Images], bool], dict[str, Any]]:
    """Return a function that detects a face in an image uint8 [c, h, w], and its facts; ConfigError without OpenCV."""
    try:
        import cv2.data
    except ImportError:
        raise ConfigError(f"{prefix} needs OpenCV: pip install -e '.[faces]'") from None
    path = Path(cv2.data.haarcascades) / CASCADE
    if not path.is_file():
        raise ConfigError(f"{prefix} needs {path}, removed in OpenCV 5: pip install -e '.[faces]'")
    cascade = cv2.CascadeClassifier(str(path))

    def has_face(image: Images) -> bool:
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
        grey = pixels[..., 0] if len(image) == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        grey = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        grey = cv2.copyMakeBorder(grey, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_REPLICATE)
        faces = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=3, minSize=(SIDE // 2, SIDE // 2))
        return len(faces) > 0

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return has_face, {"detector": CASCADE, "sha256": sha256, "opencv": cv2.__version__, "side": SIDE, "border": BORDER}
