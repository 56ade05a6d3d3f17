"""In how many samples a face detector finds a face (Viola & Jones, CVPR 2001), beside that of the test images.

The detector is OpenCV's cascade for frontal faces, which ships in its package: pip install -e '.[faces]'.
Metrics: `face_rate`, a share of SAMPLES images with Wilson's interval; of the test images in the provenance.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from eval.record import Result
from eval.sampling import draw
from eval.trial import Subject
from trainer.errors import ConfigError

SAMPLES = 1000
CASCADE = "haarcascade_frontalface_alt2.xml"
SIDE = 128  # pixels that an image is brought to: the cascade was trained on faces of 20
BORDER = 32  # pixels added at each edge: in cropped photographs a face leaves no room around itself

Images = NDArray[np.uint8]  # [n, c, h, w], grey or RGB


def evaluate(subject: Subject) -> Result:
    """Look for faces in samples and in test images; ConfigError if OpenCV or `sample` is missing."""
    subject.capability("sample", "face_rate")
    has_face, facts = detector(f"{subject.run.path}: eval.metrics: face_rate")
    domain, number = next(iter(subject.domains)), subject.config.train.seed
    fakes = one_by_one(chunk.cpu().numpy() for chunk in draw(subject, SAMPLES, number, "face_rate"))
    faces = sum(map(has_face, fakes))
    real = subject.arrays(domain, "test").images[:SAMPLES]
    interval = binomtest(faces, SAMPLES).proportion_ci(0.95, method="wilson")
    result = Result({"face_rate": faces / SAMPLES}, {"face_rate": (interval.low, interval.high)})
    of_real = {"set": subject.domains[domain], "split": "test", "n": len(real)}
    of_real["face_rate"] = sum(map(has_face, one_by_one([real]))) / len(real)
    how = {"n": SAMPLES, "seed": number, "step": subject.step, "test images": of_real}
    result.provenance["face_rate"] = facts | how
    return result


def one_by_one(chunks: Iterable[Images]) -> Iterator[Images]:
    """Images [c, h, w] of chunks [n, c, h, w]."""
    return (image for chunk in chunks for image in chunk)


def detector(who: str) -> tuple[Callable[[Images], bool], dict[str, Any]]:
    """A function that says whether an image uint8 [c, h, w] has a face, and what it is; ConfigError without OpenCV."""
    try:
        import cv2.data
    except ImportError:
        raise ConfigError(f"{who} needs OpenCV: pip install -e '.[faces]'") from None
    path = Path(cv2.data.haarcascades) / CASCADE
    if not path.is_file():
        raise ConfigError(f"{who} needs {path}, which OpenCV 5 has no more: pip install -e '.[faces]'")
    cascade = cv2.CascadeClassifier(str(path))

    def has_face(image: Images) -> bool:
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
        grey = pixels[..., 0] if len(image) == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        grey = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        grey = cv2.copyMakeBorder(grey, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_REPLICATE)
        found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=3, minSize=(SIDE // 2, SIDE // 2))
        return len(found) > 0

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return has_face, {"detector": CASCADE, "sha256": sha256, "opencv": cv2.__version__, "side": SIDE, "border": BORDER}
