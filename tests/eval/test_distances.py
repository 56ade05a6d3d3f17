"""Distances between sets of features, against pytorch-fid, scikit-learn and formulas for cases that have one."""

import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_fid import fid_score
from scipy import linalg
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from eval.features import comparison, distances, extractor
from eval.features.extractor import Extractor, Statistics
from eval.features.moments import Gaussian, Moments
from tests import warm

ROOT = Path(__file__).parents[2]
WORKER = """
import sys, numpy as np
from eval import distributed
from tests.eval.test_distances import sampled
with distributed.process_group():
    found = sampled(10_000)
np.savez(f"{sys.argv[1]}/{distributed.rank()}.npz", sums=found.moments.sums, features=found.features)
"""


def cloud(n: int, width: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    """Return features that are correlated and far from zero, like those of a network: float32 [n, width]."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((width, width)) / width**0.5
    return torch.from_numpy((np.abs(random.standard_normal((n, width)) @ mix) + shift).astype(np.float32))


def moments(features: torch.Tensor, parts: int = 1) -> Moments:
    moments_in_parts = Moments(features.shape[1])
    for part in features.chunk(parts):
        moments_in_parts.add(part)
    return moments_in_parts


def network(width: int = 32) -> Extractor:
    """Return random sums of the 16 values of each image, as features that cost no time."""
    weights = cloud(16, width)
    function = lambda images: images.flatten(1).float() / 255 @ weights  # noqa: E731
    return Extractor("sums", "", width, 500, "none", function, torch.device("cpu"), "")


def sampled(n: int) -> Statistics:
    """Return the statistics of n samples, drawn by all processes of the group, or by this one."""
    config = SimpleNamespace(train=SimpleNamespace(seed=3))
    noise = lambda name, metric: lambda n: torch.randn(n, 1, 4, 4)  # noqa: E731
    trial: Any = SimpleNamespace(
        run=SimpleNamespace(path=Path("run")),
        config=config,
        image_shape=(1, 4, 4),
        step=10,
        device=torch.device("cpu"),
        capability=noise,
    )
    return comparison.sample_statistics(trial, n, "fid", network())


def gaussian(features: torch.Tensor) -> Gaussian:
    x = features.double().numpy()
    return Gaussian(x.mean(0), np.cov(x, rowvar=False))


@pytest.fixture
def pytorch_fid(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return pytorch-fid's own distance function, for any version of scipy's sqrtm."""

    class Linalg:
        @staticmethod
        def sqrtm(a: Any, disp: bool = True) -> Any:
            return (linalg.sqrtm(a), 0.0) if not disp else linalg.sqrtm(a)

    monkeypatch.setattr(fid_score, "linalg", Linalg)
    return fid_score.calculate_frechet_distance


# --- moments


@pytest.mark.parametrize("parts", [1, 13])
def test_streamed_mean_and_covariance_match_numpy(parts: int) -> None:
    features = cloud(500, 24, shift=100.0)
    actual, expected = moments(features, parts).gaussian(), gaussian(features)
    np.testing.assert_allclose(actual.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(actual.covariance, expected.covariance, rtol=1e-7, atol=1e-9)


def test_two_processes_compute_the_moments_of_one_for_10_000_samples(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    warm.run([*command, str(tmp_path / "worker.py"), str(tmp_path)], cwd=ROOT, env=environment, check=True, timeout=300)
    one, other = sampled(10_000), moments(cloud(300, 32, seed=1)).gaussian()
    assert one.moments.count == 10_000
    assert len(one.features) == extractor.KEPT
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as file:
            both, features = Moments(32, sums=file["sums"]), file["features"]
        assert both.count == 10_000
        np.testing.assert_allclose(both.sums, one.moments.sums, rtol=1e-12)
        np.testing.assert_array_equal(features, one.features)  # the same images, in their order
        # The features have rank 16 of 32: the root of a zero eigenvalue turns rounding of 1e-16 into 1e-8.
        assert distances.frechet(both.gaussian(), other) == pytest.approx(
            distances.frechet(one.moments.gaussian(), other), rel=2e-8
        )


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments, and the KEPT first features, which the distances of single images look at; else a batch at a time.

    A tensor made of an array keeps it alive as long as any view of its memory is there.
    """
    held: dict[str, list[weakref.ref[np.ndarray]]] = {}
    right = Extractor.features

    def noted(kind: str, array: np.ndarray) -> torch.Tensor:
        held[kind].append(weakref.ref(array))
        return torch.from_numpy(array)

    monkeypatch.setattr(extractor, "KEPT", 250)
    monkeypatch.setattr(Extractor, "features", lambda *arguments: noted("features", right(*arguments).numpy().copy()))

    def most(batches: int) -> dict[str, int]:
        """Return how many batches of images, and of features, are in memory at once at most."""
        held.update(images=[], features=[])
        counts = dict.fromkeys(held, 0)

        def images() -> Iterator[torch.Tensor]:
            for number in range(batches):
                yield noted("images", np.full((100, 1, 4, 4), number % 256, np.uint8))
                for kind, arrays in held.items():
                    counts[kind] = max(counts[kind], sum(array() is not None for array in arrays))

        kept = extractor.collect(images(), network())
        assert kept.moments.count == 100 * batches
        assert len(kept.features) == 250
        return counts

    assert most(100) == most(10)
    assert most(100)["images"] <= 2
    assert most(100)["features"] <= 3 + 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_feature_that_is_not_finite_is_refused_and_changes_nothing(value: float) -> None:
    features = cloud(10, 4)
    sums = moments(features)
    before = sums.sums.clone()
    features[3, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        sums.add(features)
    assert torch.equal(sums.sums, before)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_have_no_covariance(n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} images"):
        moments(cloud(10, 4)[:n]).gaussian()
    with pytest.raises(ValueError, match="fewer than two"):
        distances.kid(cloud(10, 4), cloud(n, 4))


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 4"):
        Moments(4).add(cloud(3, 5))
    with pytest.raises(ValueError, match="width 4"):
        Moments(4, sums=moments(cloud(3, 5)).sums.numpy())
    with pytest.raises(ValueError, match=r"width 4.*width 5"):
        distances.frechet(gaussian(cloud(9, 4)), gaussian(cloud(9, 5)))


# --- Fréchet distance


@pytest.mark.parametrize(("n", "width"), [(400, 16), (600, 200), (3000, 256)])
def test_the_frechet_distance_matches_pytorch_fid(n: int, width: int, pytorch_fid: Any) -> None:
    real, fake = cloud(n, width), cloud(n + 50, width, seed=1, shift=0.05)
    x, y = gaussian(real), gaussian(fake)
    expected = pytorch_fid(x.mean, x.covariance, y.mean, y.covariance)
    assert distances.frechet(moments(real, 3).gaussian(), moments(fake, 7).gaussian()) == pytest.approx(
        expected, rel=1e-6
    )


def test_the_frechet_distance_is_exact_with_fewer_images_than_features() -> None:
    """Compare with another formula: the nuclear norm of the product of the centred data matrices."""
    real, fake = cloud(40, 100).double(), cloud(30, 100, seed=1).double()
    x, y = (f - f.mean(0) for f in (real, fake))
    root = torch.linalg.matrix_norm(x @ y.T, "nuc") / (39 * 29) ** 0.5
    expected = (real.mean(0) - fake.mean(0)).square().sum() + x.square().sum() / 39 + y.square().sum() / 29 - 2 * root
    assert distances.frechet(gaussian(real), gaussian(fake)) == pytest.approx(float(expected), rel=1e-9)


def test_the_frechet_distance_of_independent_coordinates_matches_its_formula() -> None:
    """Σ (m1 - m2)² + (s1 - s2)², for deviations s."""
    a, b = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 0.0])
    distance = distances.frechet(Gaussian(np.zeros(3), np.diag(a**2)), Gaussian(np.array([1.0, 0, 2]), np.diag(b**2)))
    assert distance == pytest.approx(1 + 4 + ((a - b) ** 2).sum())
    none = np.zeros((3, 3))
    assert distances.frechet(Gaussian(a, none), Gaussian(b, none)) == pytest.approx(((a - b) ** 2).sum())


def test_the_frechet_distance_is_symmetric_and_zero_to_itself() -> None:
    real, fake = gaussian(cloud(300, 20)), gaussian(cloud(300, 20, seed=1, shift=0.5))
    assert distances.frechet(real, real) == pytest.approx(0, abs=1e-10)
    assert distances.frechet(real, fake) == pytest.approx(distances.frechet(fake, real), rel=1e-12)
    assert distances.frechet(real, fake) > 1


def test_the_frechet_distance_refuses_values_that_are_not_finite() -> None:
    good = gaussian(cloud(30, 4))
    with pytest.raises(ValueError, match="finite"):
        distances.frechet(Gaussian(good.mean * np.nan, good.covariance), good)
    with pytest.raises(ValueError, match=r"infs or NaNs|finite"):
        distances.frechet(Gaussian(good.mean, good.covariance * np.nan), good)


# --- KID, precision and recall, density and coverage


def test_kid_is_the_unbiased_estimate_with_scikit_learns_kernel() -> None:
    real, fake = cloud(60, 12), cloud(60, 12, seed=1, shift=0.1)
    kernel = {"degree": 3, "gamma": 1 / 12, "coef0": 1}
    x, y = real.double().numpy(), fake.double().numpy()
    off = ~np.eye(60, dtype=bool)
    expected = (
        polynomial_kernel(x, x, **kernel)[off].mean()
        + polynomial_kernel(y, y, **kernel)[off].mean()
        - 2 * polynomial_kernel(x, y, **kernel).mean()
    )
    assert distances.kid(real, fake) == pytest.approx(expected, rel=1e-9)


def test_kid_on_subsets_is_close_to_kid_on_all_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = cloud(400, 12), cloud(400, 12, seed=1, shift=0.2)
    whole = distances.kid(real, fake)
    monkeypatch.setattr(distances, "SUBSET", 100)
    assert distances.kid(real, fake) == pytest.approx(whole, rel=0.1)
    assert distances.kid(real, fake) == distances.kid(real, fake) != whole


def test_kid_of_two_samples_of_one_distribution_is_zero_on_average() -> None:
    estimates = [distances.kid(cloud(50, 6, seed), cloud(50, 6, 1000 + seed)) for seed in range(60)]
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / 60**0.5
    assert min(estimates) < 0 < max(estimates)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_precision_recall_density_coverage_match_scikit_learn(shift: float) -> None:
    real, fake = cloud(80, 5), cloud(70, 5, seed=1, shift=shift)
    x, y = real.double().numpy(), fake.double().numpy()

    def radii(points: np.ndarray, k: int) -> np.ndarray:
        return np.asarray(NearestNeighbors(n_neighbors=k).fit(points).kneighbors()[0][:, -1])

    def inside(balls: np.ndarray, points: np.ndarray, k: int) -> np.ndarray:
        distance = np.linalg.norm(balls[:, None] - points[None], axis=2)
        return np.asarray(distance <= radii(balls, k)[:, None])

    precision, recall = distances.precision_recall(real, fake)
    assert precision == pytest.approx(inside(x, y, 3).any(0).mean())
    assert recall == pytest.approx(inside(y, x, 3).any(0).mean())
    density, coverage = distances.density_coverage(real, fake)
    assert density == pytest.approx(inside(x, y, 5).sum() / 5 / len(y))
    assert coverage == pytest.approx(inside(x, y, 5).any(1).mean())
    assert 0 < precision < 1
    assert 0 < recall < 1


def test_collapsed_samples_have_no_recall_and_distant_ones_no_precision() -> None:
    real = cloud(100, 6)
    collapsed = real[:1] + torch.randn(100, 6, generator=torch.Generator().manual_seed(0)) * 1e-3
    assert distances.precision_recall(real, collapsed) == (1.0, pytest.approx(0.01))
    assert distances.density_coverage(real, collapsed)[1] < 0.2
    assert distances.precision_recall(real, real + 100) == (0.0, 0.0)
    assert distances.density_coverage(real, real + 100) == (0.0, 0.0)
    assert distances.precision_recall(real, real) == (1.0, 1.0)


def test_precision_and_recall_of_two_images_are_defined() -> None:
    real, fake = cloud(2, 3), cloud(2, 3, seed=1)
    for share in (*distances.precision_recall(real, fake), *distances.density_coverage(real, fake)):
        assert 0 <= share <= 2
