"""How many records per second the loader makes of JPEG bytes: batches on the device, at 512².

    python benchmarks/loader.py > benchmarks/results/loader_cpu.json

Prints JSON. The records are written first, into a temporary folder: photograph-like pictures
(noise with the spectrum of a photograph and a sensor's grain), a shaded head over black as shading
map, an aligned face of 112² and five or six regions per caption. Every record differs. Everything
that training reads is made: image, face at 224², shading, token ids, masks on the grids, drops.
`stages` are medians of the steps by themselves, in milliseconds of one thread's own time, so that
other programs on the machine count less. `cpu_ms_per_record` is such time, too: under `one_thread`
from a record's number to its place in a batch, under `rates` all that the process and its workers
spend until the batch is on the device; its inverse is the rate of one core.
"""

import dataclasses
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import jax
import numpy as np
import tyro
from jax.sharding import SingleDeviceSharding

from data.codec import Caption, Record, decode, encode_jpeg, encode_png
from data.dataset import Dataset, open_dataset
from data.geometry import shrink_masks
from data.loader import Loader, LoaderConfig
from data.schema import Schema
from data.shards import Shard, write
from fmv2.pictures import resize
from fmv2.tokens import EMBEDDED, Tokens

CAPTIONS = {
    "attribute": "a woman with long red hair, round glasses and a blue hat",
    "emotion": "she is smiling with wide open eyes and raised brows",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Write records, load them, and print the rates."""

    size: int = 512
    """Side of the pictures in pixels."""
    batch_size: int = 16
    batches: int = 24
    """Timed, after a few that are not."""
    grids: tuple[int, ...] = (32,)
    """Sides of the attention grids."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Processes that decode; 0 is threads of one process."""
    records: int = 256
    """Of few records, Grain's shuffle costs more than of many: 0.8 ms each of 32."""
    tokenizer: Path = EMBEDDED


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A `data.shards.Source` of records that cost what real ones cost."""

    settings: Settings

    schema = Schema()

    @property
    def metadata(self) -> dict[str, str]:
        tokens = Tokens.load(self.settings.tokenizer)
        return {"tokenizer": tokens.fingerprint, "source": "benchmark"}

    def shards(self) -> list[Shard]:
        items = range(self.settings.records)
        return [Shard("train", n, 2, items[n::2]) for n in range(2)]

    def fingerprint(self) -> str:
        return repr(self.settings)

    def records(self, items):
        for item in items:
            yield self.record(item)

    def record(self, number: int) -> Record:
        size = self.settings.size
        rng = np.random.default_rng(number)
        tokens = np.zeros((6, 77), bool)
        tokens[np.arange(6), np.arange(2, 14, 2)] = True
        image = photograph(rng, size)
        shading, masks = head(rng, size)
        return Record(
            key=f"record-{number}",
            image=encode_jpeg(image),
            face=encode_jpeg(resize(image, 112)),
            shading=encode_png(shading),
            captions={
                kind: Caption(text=text, masks=masks[:count], tokens=tokens[:count])
                for (kind, text), count in zip(CAPTIONS.items(), (6, 5), strict=True)
            },
            face_id=rng.normal(size=512).astype(np.float32),
            landmarks=rng.uniform(0, size, (5, 2)).astype(np.float32),
        )


def photograph(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise of all scales, the coarse ones strong, about 100 kB as a JPEG of 512²."""
    pixels = np.full((size, size, 3), 128, np.float32)
    for side, strength in ((4, 40), (16, 20), (64, 10), (size // 2, 5), (size, 3)):
        noise = strength * rng.normal(size=(side, side, 3)).astype(np.float32)
        pixels += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def head(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A lit ellipsoid with bumps, black outside, and six regions of it."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    nx, ny = x / 0.3, y / 0.4
    inside = nx**2 + ny**2 < 1
    nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
    bumps = 0.15 * np.sin(9 * nx) * np.sin(7 * ny)
    light = rng.uniform(-0.5, 0.5, (3, 2))
    lit = [0.5 + 0.3 * nz + bumps + a * nx + b * ny for a, b in light]
    shading = np.clip(np.stack(lit, -1), 0, 1) * inside[..., None]
    regions = rng.uniform([-0.6, -0.6, 0.1, 0.05], [0.6, 0.6, 0.5, 0.3], (6, 4))
    masks = [((nx - cx) / rx) ** 2 + ((ny - cy) / ry) ** 2 < 1 for cx, cy, rx, ry in regions]
    return (255 * shading).astype(np.uint8), np.stack(masks)


def stages(dataset: Dataset, tokens: Tokens, settings: Settings) -> dict[str, float]:
    """What each step costs by itself."""
    records = dataset.source("train", ())
    record = records[0]
    planes = decode(record["attribute_masks"], channels=1)
    face = decode(record["face"])
    count = record["attribute_count"]
    steps: dict[str, Callable[[], object]] = {
        "read and parse": lambda: records[0],
        "decode image": lambda: decode(record["image"]),
        "decode shading": lambda: decode(record["shading"]),
        "decode face": lambda: decode(record["face"]),
        "resize face": lambda: resize(face, 224),
        "decode masks": lambda: decode(record["attribute_masks"], channels=1),
        "shrink masks": lambda: shrink_masks(planes, count, settings.grids, "area"),
        "tokenize": lambda: tokens.ids(record["attribute_caption"]),
    }
    return {name: round(_cpu_ms(step), 3) for name, step in steps.items()}


def _cpu_ms(step: Callable[[], object], repeats: int = 100) -> float:
    step()
    spent = []
    for _ in range(repeats):
        start = time.thread_time()
        step()
        spent.append(time.thread_time() - start)
    return 1e3 * statistics.median(spent)


def measure(dataset: Dataset, tokens: Tokens, settings: Settings, workers: int) -> dict[str, float]:
    """Records per second on the device with so many workers."""
    config = LoaderConfig(
        batch_size=settings.batch_size,
        size=settings.size,
        mask_grids=settings.grids,
        workers=workers,
    )
    sharding = SingleDeviceSharding(jax.devices()[0])
    with Loader(dataset, "train", tokens, config, sharding=sharding) as loader:
        for batch in itertools.islice(loader, 6):  # what was made ahead is not counted
            jax.block_until_ready(batch)
        start, before = time.perf_counter(), _spent()
        for batch in itertools.islice(loader, settings.batches):
            jax.block_until_ready(batch)
        seconds, spent = time.perf_counter() - start, _spent() - before
    records = settings.batches * settings.batch_size
    return {
        "workers": workers,
        "records_per_second": round(records / seconds, 1),
        "cpu_ms_per_record": round(1e3 * spent / records, 2),
    }


def _spent() -> float:
    """CPU seconds of this process and its workers, as Linux counts them."""
    ticks = 0
    for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system
    return ticks / os.sysconf("SC_CLK_TCK")


def one_thread(dataset: Dataset, tokens: Tokens, settings: Settings) -> dict[str, float]:
    """One thread by itself, no pipeline: the whole way from a record's number to its batch."""
    config = LoaderConfig(
        batch_size=settings.batch_size, size=settings.size, mask_grids=settings.grids
    )
    with Loader(dataset, "train", tokens, config) as loader:
        batches = loader.batches()
        spent = [_cpu_ms(lambda: batches[0], 1) for _ in range(settings.batches)]
    cost = statistics.median(spent) / settings.batch_size
    return {"cpu_ms_per_record": round(cost, 2), "records_per_cpu_second": round(1e3 / cost, 1)}


def main(settings: Settings) -> None:
    cv2.setNumThreads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records"
        write(Pictures(settings), path, progress=False)
        dataset, tokens = open_dataset(path), Tokens.load(settings.tokenizer)
        first = dataset.source("train")[0]
        report = {
            "program": "benchmarks/loader.py",
            "settings": dataclasses.asdict(settings) | {"tokenizer": settings.tokenizer.name},
            "versions": {
                name: version(name)
                for name in ("jax", "grain", "numpy", "opencv-python-headless", "array_record")
            },
            "python": platform.python_version(),
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
            "load_average_at_start": round(load, 2),
            "bytes": {name: len(first[name]) for name in ("image", "shading", "face")},
            "stages": stages(dataset, tokens, settings),
            "one_thread": one_thread(dataset, tokens, settings),
            "rates": [measure(dataset, tokens, settings, workers) for workers in settings.workers],
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Settings))
