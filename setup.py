"""Packaging of Turnout: an editable install makes the rooms of the checkout importable by name."""

from setuptools import find_packages, setup

PYARROW = "pyarrow>=14"  # for datasets hf:<path>
SEARCH = ["optuna>=5", "cmaes>=0.10"]  # for `search:` in a sweep file; cmaes for its sampler of that name
FACES = ["opencv-python-headless>=4.8,<5"]  # for eval/metrics/face_rate.py: OpenCV 5 ships no cascades

setup(
    name="turnout",
    version="0.1.0",
    description="Train GANs, VAEs, diffusion models and domain adaptation as sweeps on a Slurm cluster",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["eval*", "jobs*", "models*", "trainer*"]),
    py_modules=["turnout"],
    entry_points={"console_scripts": ["turnout=turnout:main"]},
    package_data={"eval": ["reporting/*.css", "reporting/*.jinja", "reporting/*.js"]},
    install_requires=[
        "accelerate>=1.0",
        "filelock>=3.12",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "mlxtend>=0.23",
        "numpy>=1.26",
        "pillow>=10",
        "psutil>=5.9",
        "pydantic>=2.7",
        "pytorch-fid>=0.3",
        "pyyaml>=6",
        "rich>=13",
        "safetensors>=0.4.3",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "submitit>=1.5",
        "tensorboard>=2.15",
        "threadpoolctl>=3.1",
        "torch>=2.6",
        "torchvision>=0.21",
    ],
    extras_require={
        "faces": FACES,
        "huggingface": [PYARROW],
        "search": SEARCH,
        "test": [
            *FACES,
            *SEARCH,
            "diffusers>=0.30",
            "mypy>=1.13",
            PYARROW,
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "types-PyYAML",
            "types-psutil",
        ],
    },
)
