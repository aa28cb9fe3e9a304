"""ArcFace from ONNX: the graph is walked, since exporters fuse norms and drop names.

The result bears arcface_torch's names. Where a BatchNorm was fused into its convolution, one stands
in its place that only adds the convolution's bias (mean 0, variance 1 - eps, weight 1), so that the
net's outputs are the graph's up to rounding.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from convert.engine import TensorRef
from fmv2.errors import UserError

_EPS = 1e-5  # of every BatchNorm in our IResNet


def open_arcface(path: Path) -> dict[str, TensorRef]:
    """The tensors of an IResNet in an ONNX file, by arcface_torch's names.

    Raises:
      UserError: onnx is not installed, the file is no ONNX model, or its graph is not an IResNet's.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as e:
        raise UserError(f"{path}: install onnx to read it (pip install 'fmv2[torch]')") from e

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError) as e:
        reason = str(e).strip().splitlines()[0]
        raise UserError(f"{path}: truncated, corrupt or no ONNX model: {reason}") from e
    arrays = _Walk(path, model.graph).iresnet()
    return {
        name: TensorRef(array.shape, array.dtype, lambda array=array: array)
        for name, array in arrays.items()
    }


class _Walk:
    """Follows a graph's edges from its input and refuses the first node that IResNet has not there.

    `at` is the name of the activation reached, `out` collects the tensors.
    """

    def __init__(self, path: Path, graph: Any):
        from onnx import numpy_helper

        self.path = path
        self.out: dict[str, np.ndarray] = {}
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.names: dict[str, str] = {}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            if node.op_type == "Identity":  # exporters share equal weights through these
                self.names[node.output[0]] = self.resolve(node.input[0])
            else:
                for name in node.input:
                    self.consumers[self.resolve(name)].append(node)
        inputs = [value.name for value in graph.input if value.name not in self.values]
        if len(inputs) != 1:
            self.refuse(f"its inputs are {inputs}, expected one image")
        self.at = inputs[0]

    def iresnet(self) -> dict[str, np.ndarray]:
        self.conv("conv1", "bn1", kernel=3, stride=1)
        self.prelu("prelu")
        stage, block = 0, 0
        while self.sees("Conv") or self.sees("Add"):
            stage, block = (stage + 1, 0) if self.sees("Conv") else (stage, block + 1)
            self.block(f"layer{stage}.{block}", downsample=self.sees("Conv"))
        self.batch_norm("bn2")
        for op in ("Dropout", "Flatten"):
            if op == "Flatten" or self.sees(op):
                self.step(op)
        self.linear("fc")
        if self.sees("BatchNormalization"):
            self.batch_norm("features")
        else:
            self.bias_as_norm("features", np.zeros_like(self.out["fc.bias"]))
        if self.consumers[self.at]:
            self.refuse(f"node {self.consumers[self.at][0].name!r} follows the embedding")
        return self.out

    def block(self, name: str, *, downsample: bool) -> None:
        start = self.at
        self.batch_norm(f"{name}.bn1")
        self.conv(f"{name}.conv1", f"{name}.bn2", kernel=3, stride=1)
        self.prelu(f"{name}.prelu")
        self.conv(f"{name}.conv2", f"{name}.bn3", kernel=3, stride=2 if downsample else 1)
        body, self.at = self.at, start
        if downsample:
            self.conv(f"{name}.downsample.0", f"{name}.downsample.1", kernel=1, stride=2)
        shortcut = self.at
        add = self.step("Add")
        if {self.resolve(i) for i in add.input} != {body, shortcut}:
            self.refuse(f"node {add.name!r} does not add block {name} to its shortcut")

    def conv(self, name: str, norm: str, *, kernel: int, stride: int) -> None:
        node = self.step("Conv")
        expected = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "dilations": [1] * 2}
        found = {"strides": [1] * 2, "pads": [0] * 4, "dilations": [1] * 2} | {
            a.name: list(a.ints) for a in node.attribute if a.name in expected
        }
        weight = self.value(node, 1)
        if found != expected or weight.shape[2:] != (kernel, kernel):
            self.refuse(
                f"{name} (node {node.name!r}) has weights {weight.shape} and {found},"
                f" expected a {kernel}x{kernel} kernel and {expected}"
            )
        self.out[f"{name}.weight"] = weight
        bias = self.value(node, 2) if len(node.input) > 2 else np.zeros_like(weight[:, 0, 0, 0])
        # A BatchNorm right behind a convolution is its own: a block's reads a sum or a PReLU.
        if self.sees("BatchNormalization"):
            self.batch_norm(norm)
            self.out[f"{norm}.running_mean"] = self.out[f"{norm}.running_mean"] - bias
        else:
            self.bias_as_norm(norm, bias)

    def batch_norm(self, name: str) -> None:
        node = self.step("BatchNormalization")
        for i, part in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
            self.out[f"{name}.{part}"] = self.value(node, i)
        eps = next((a.f for a in node.attribute if a.name == "epsilon"), _EPS)
        variance = self.out[f"{name}.running_var"]
        if not np.isclose(eps, _EPS, rtol=1e-3):
            self.out[f"{name}.running_var"] = (variance + (eps - _EPS)).astype(variance.dtype)

    def bias_as_norm(self, name: str, bias: np.ndarray) -> None:
        self.out |= {
            f"{name}.weight": np.ones_like(bias),
            f"{name}.bias": bias,
            f"{name}.running_mean": np.zeros_like(bias),
            f"{name}.running_var": np.full_like(bias, 1 - _EPS),
        }

    def prelu(self, name: str) -> None:
        self.out[f"{name}.weight"] = self.value(self.step("PRelu"), 1).reshape(-1)

    def linear(self, name: str) -> None:
        node = self.step("Gemm")
        attributes = {a.name: a.i or a.f for a in node.attribute}
        if attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1:
            self.refuse(f"{name} (node {node.name!r}) scales its operands")
        weight = self.value(node, 1)
        self.out[f"{name}.weight"] = weight if attributes.get("transB") else weight.T
        self.out[f"{name}.bias"] = self.value(node, 2)

    def sees(self, op: str) -> bool:
        return any(node.op_type == op for node in self.consumers[self.at])

    def step(self, op: str) -> Any:
        """Moves through the one node of this type that reads the activation reached."""
        nodes = [node for node in self.consumers[self.at] if node.op_type == op]
        if len(nodes) != 1:
            found = [f"{node.op_type} {node.name!r}" for node in self.consumers[self.at]]
            self.refuse(f"after tensor {self.at!r} expected one {op}, found {found}")
        self.at = nodes[0].output[0]
        return nodes[0]

    def value(self, node: Any, i: int) -> np.ndarray:
        name = self.resolve(node.input[i])
        if name not in self.values:
            self.refuse(
                f"input {name!r} of node {node.name!r} is computed, expected a stored weight"
            )
        return self.values[name]

    def resolve(self, name: str) -> str:
        return self.names.get(name, name)

    def refuse(self, why: str) -> NoReturn:
        raise UserError(f"{self.path}: this ONNX model is not an ArcFace IResNet: {why}")
