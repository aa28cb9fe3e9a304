"""TFDS without its banner about TensorFlow, which is neither needed nor wanted here."""

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    import tensorflow_datasets as tfds

    tfds.features.FeaturesDict  # noqa: B018  (its modules load at the first touch)

__all__ = ["tfds"]
