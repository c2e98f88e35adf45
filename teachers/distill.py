"""Distil the early layers of an ImageNet ResNet-18 into one that starts from random weights.

    python teachers/distill.py --photographs PHOTOS.npz --weights resnet18.safetensors --layers 2 --output runs/teachers

writes ``resnet18.safetensors`` and ``manifest.json`` to the output folder. The same command goes on with a run that was
interrupted. See README.md beside this file.
"""

import argparse
import hashlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import timm
import torch
from photographs import TrainingImages, hold_out, load_photographs, normalize
from safetensors.torch import load, load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

BACKBONE = "resnet18"
FIDELITY = "mean cosine similarity to the source's features, photographs kept out of the training"
WARM_UP = 200  # steps
FREEZE = 0.5  # share of the run after which batch normalisation keeps its statistics, as it will be used
DIRECTION = 4.0  # weight of the cosine beside the squared difference
JUDGED_SIDE = 256  # of the photographs that judge, in pixels: the size that the models take
CHECKPOINT_SECONDS = 60
REPORT_SECONDS = 10


@dataclass(frozen=True)
class Recipe:
    """What decides the result, beside the photographs and the weights that are followed.

    Attributes:
        layers: Depth of the student: 1, 2 or 3 of ResNet-18's layers.
        steps: Length of the run; None where ``seconds`` limits it.
        seconds: Length of the run; None where ``steps`` limits it.
        batch: Images a step.
        size: Side of the images, in pixels.
        learning_rate: The highest; it rises for 200 steps and falls to zero as a half cosine.
        seed: Of the student's first weights and of every image.
    """

    layers: int = 2
    steps: int | None = 20_000
    seconds: float | None = None
    batch: int = 256
    size: int = 128
    learning_rate: float = 0.01
    seed: int = 0


class Blocks(nn.Module):
    """A ResNet-18 up to a layer that gives what each residual block computes, before its last ReLU.

    Before the ReLU, a position at which the student is silent has a gradient too, and negative values are followed as
    positive ones are.

    Args:
        layers: 1, 2 or 3.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        net = timm.create_model(BACKBONE, features_only=True, out_indices=tuple(range(1, layers + 1)))
        self.net = cast("nn.ModuleDict", net)
        self.layers = [f"layer{number}" for number in range(1, layers + 1)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images of shape (B, 3, H, W) to two maps a layer, of strides 4, 8, 16 and 64, 128, 256 channels."""
        net, maps = self.net, []
        block: Any
        x = net["maxpool"](F.relu(net["bn1"](net["conv1"](images))))
        for layer in self.layers:
            for block in net[layer].children():
                shortcut = x if block.downsample is None else block.downsample(x)
                hidden = F.relu(block.bn1(block.conv1(x)))
                maps.append(block.bn2(block.conv2(hidden)) + shortcut)
                x = F.relu(maps[-1])
        return maps


class _Matrix(nn.Module):
    """A convolution's kernel kept as a matrix, a row an output channel: Muon takes matrices alone."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.shape)

    def right_inverse(self, kernel: Tensor) -> Tensor:
        return kernel.flatten(1)


def load_network(source: str, layers: int) -> Blocks:
    """Load a ResNet-18, frozen.

    Args:
        source: A ``.safetensors`` file in timm's names, or one of timm's tags, from its cache or the hub.
        layers: How deep.

    Raises:
        SystemExit: If the file does not fit.
    """
    is_file = source.endswith(".safetensors")
    state = load_file(source) if is_file else timm.create_model(source, pretrained=True).state_dict()
    blocks = Blocks(layers).eval().requires_grad_(requires_grad=False)
    optional = {key for key in blocks.net.state_dict() if key.endswith("num_batches_tracked")}
    missing = blocks.net.state_dict().keys() - state.keys() - optional
    if missing:
        msg = f"{source} has no {min(missing)}: give the weights of a {BACKBONE} up to layer {layers}."
        raise SystemExit(msg)
    blocks.net.load_state_dict(state, strict=False)
    return blocks


def matching_loss(teacher: list[Tensor], student: list[Tensor], spreads: list[Tensor]) -> Tensor:
    """Compare the blocks' maps: squared differences, and the angles of what each layer hands on.

    Args:
        teacher: Maps of shape (B, C, H, W), two a layer.
        student: The same.
        spreads: The teacher's variance of each channel, of shape (C, 1, 1).

    Returns:
        Mean over blocks of the mean of (t - s)^2 / variance, and ``DIRECTION`` times the mean over layers of one
        minus the cosine of the channel vectors after the ReLU; a scalar.
    """
    squares = [((t - s).float().square() / v).mean() for t, s, v in zip(teacher, student, spreads, strict=True)]
    angles = [
        1 - F.cosine_similarity(t.float().relu(), s.float().relu()).mean()
        for t, s in zip(teacher[1::2], student[1::2], strict=True)
    ]
    return torch.stack(squares).mean() + DIRECTION * torch.stack(angles).mean()


@torch.no_grad()
def fidelity(teacher: Blocks, student: Blocks, photographs: Tensor) -> dict[str, float]:
    """Judge a student on photographs that it has not seen.

    Args:
        teacher: Network that is followed.
        student: Network that follows.
        photographs: 8-bit images of shape (N, 3, H, H).

    Returns:
        For each layer the mean cosine similarity of the channel vectors, over all positions of all photographs.
    """
    sums = dict.fromkeys(student.layers, 0.0)
    edge = max(0, photographs.shape[-1] - JUDGED_SIDE) // 2
    for part in photographs[..., edge : edge + JUDGED_SIDE, edge : edge + JUDGED_SIDE].split(8):
        images = normalize(part / 255)
        for layer, t, s in zip(student.layers, teacher(images)[1::2], student(images)[1::2], strict=False):
            sums[layer] += float(F.cosine_similarity(t.relu(), s.relu()).mean((1, 2)).sum())
    return {layer: round(total / len(photographs), 4) for layer, total in sums.items()}


class Distillation:
    """A run: a student on its way.

    Args:
        recipe: What to do.
        teacher: Network that is followed, on the device that computes.
        photographs: 8-bit images of shape (N, 3, H, H) that train, there too.
        checkpoint: File to keep the run in, read if it exists.

    Raises:
        SystemExit: If the checkpoint is of another recipe.
    """

    def __init__(self, recipe: Recipe, teacher: Blocks, photographs: Tensor, checkpoint: Path) -> None:
        self.recipe, self.checkpoint, self.device = recipe, checkpoint, photographs.device
        self.images = TrainingImages(photographs, recipe.batch, recipe.size, recipe.seed)
        self.teacher = teacher.to(memory_format=torch.channels_last)
        torch.manual_seed(recipe.seed)
        self.student = Blocks(recipe.layers).to(self.device)
        for module in self.convolutions:
            parametrize.register_parametrization(module, "weight", _Matrix(module.weight.shape))
        matrices = [parameter for parameter in self.student.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.student.parameters() if parameter.ndim == 1]
        self.optimizers = [
            torch.optim.Muon(matrices, weight_decay=0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(vectors, weight_decay=0, fused=self.device.type == "cuda"),
        ]
        self.step, self.elapsed = 0, 0.0
        if checkpoint.exists():
            self._resume()
        with torch.no_grad():
            self.spreads = [
                t.float().var((0, 2, 3)).clamp(min=1e-4).view(-1, 1, 1) for t in self.teacher(self.images.views(0))
            ]

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The student's convolutions."""
        return [module for module in self.student.modules() if isinstance(module, nn.Conv2d)]

    @property
    def done(self) -> float:
        """Share of the run that is behind, 1 at its end."""
        if self.recipe.steps is not None:
            return self.step / self.recipe.steps
        return self.elapsed / (self.recipe.seconds or math.inf)

    def run(self, stopped: Callable[[int], bool] = lambda _: False) -> bool:
        """Train to the end.

        Args:
            stopped: Asked after each step, with the number of steps done; on True the run is kept and left.

        Returns:
            Whether the end was reached.
        """
        self.student.train()
        before, saved, reported = time.monotonic() - self.elapsed, self.elapsed, self.elapsed
        while self.done < 1:
            loss = self._train_step()
            self.elapsed = time.monotonic() - before
            if self.elapsed - reported >= REPORT_SECONDS:
                reported = self.elapsed
                print(f"{reported:.0f} s, step {self.step}, {self.done:.1%}, loss {self._finite(loss):.4f}", flush=True)
            if self.elapsed - saved >= CHECKPOINT_SECONDS:
                saved = self.elapsed
                self._save()
            if stopped(self.step):
                self._save()
                return False
        for module in self.convolutions:
            parametrize.remove_parametrizations(module, "weight")
        self.student.eval()
        return True

    def _train_step(self) -> Tensor:
        done = self.done
        rate = self.recipe.learning_rate * min(1, (self.step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate
        if done >= FREEZE:
            for module in self.student.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        images = self.images.views(self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            with torch.no_grad():
                target = self.teacher(images)
            loss = matching_loss(target, self.student(images), self.spreads)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.detach()

    def _finite(self, loss: Tensor) -> float:
        value = float(loss)
        if not math.isfinite(value):
            msg = f"The loss is {value} at step {self.step}: take a lower --learning-rate."
            raise SystemExit(msg)
        return value

    def _save(self) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "student": self.student.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed": self.elapsed,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            msg = f"{self.checkpoint} is of another recipe ({state['recipe']}): give its options, or delete it."
            raise SystemExit(msg)
        self.student.load_state_dict(state["student"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.elapsed = state["step"], state["elapsed"]


def stored(student: Blocks) -> bytes:
    """Give a student as a safetensors file: float16, the statistics of batch normalisation in float32.

    Small variances would lose most of their digits in float16.
    """
    state = {key: value.cpu() for key, value in student.net.state_dict().items() if not key.endswith("tracked")}
    return save({key: (value if "running" in key else value.half()).contiguous() for key, value in state.items()})


def write(content: bytes, entry: dict[str, Any], output: Path) -> None:
    """Write a teacher's file, and its entry into the folder's manifest, where others' entries stay."""
    manifest = output / "manifest.json"
    teachers = json.loads(manifest.read_text())["teachers"] if manifest.exists() else {}
    file = f"{BACKBONE}.safetensors"
    about = {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    teachers[BACKBONE] = {**about, **entry}
    (output / file).write_bytes(content)
    manifest.write_text(json.dumps({"teachers": teachers}, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None, stopped: Callable[[int], bool] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Those of the command line by default.
        stopped: As in :meth:`Distillation.run`; by default, whether an interrupt came (Ctrl-C, ``timeout -s INT``).

    Returns:
        Exit status: 0, or 3 if the run was stopped and the same command goes on.
    """
    options = _parser().parse_args(arguments)
    if options.seconds is not None:
        options.steps = None
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    photographs, origin = load_photographs(options.photographs)
    training, held_out = (part.to(device) for part in hold_out(photographs, recipe.seed))
    teacher = load_network(options.weights, recipe.layers).to(device)
    if options.judge is not None:
        print(json.dumps(fidelity(teacher, load_network(options.judge, recipe.layers).to(device), held_out)))
        return 0

    options.output.mkdir(parents=True, exist_ok=True)
    run = Distillation(recipe, teacher, training, options.output / "checkpoint.pt")
    if not run.run(stopped or _interrupted()):
        print(f"Stopped after {run.step} steps: the same command goes on.")
        return 3
    content = stored(run.student)
    student = Blocks(recipe.layers).eval()
    student.net.load_state_dict(load(content), strict=False)
    entry = {
        "layers": student.layers,
        "licence": "Apache-2.0",
        "made": "teachers/distill.py: from random weights, to follow the source on photographs, noise and weaves",
        "source": {"weights": Path(options.weights).name, "licence": "BSD-3-Clause"},
        "photographs": {**origin, "kept_out": len(held_out)},
        "recipe": {**asdict(recipe), "steps": run.step, "seconds": round(run.elapsed, 1)},
        "images": run.step * recipe.batch,
        "fidelity": {"measure": FIDELITY, **fidelity(teacher, student.to(device), held_out)},
    }
    write(content, entry, options.output)
    run.checkpoint.unlink(missing_ok=True)
    print(json.dumps(entry, indent=2))
    return 0


def _interrupted() -> Callable[[int], bool]:
    """Take interrupts as a wish to stop after the step."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    return lambda _: bool(received)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of images, or .npz of JPEG bytes")
    parser.add_argument("--weights", default="resnet18.tv_in1k", help=".safetensors in timm's names, or timm's tag")
    parser.add_argument("--layers", type=int, choices=(1, 2, 3), default=Recipe.layers, help="depth (default 2)")
    parser.add_argument("--output", type=Path, default=Path("runs/teachers"), help="folder (default runs/teachers)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=Recipe.steps, help="length of the run (default 20000)")
    length.add_argument("--seconds", type=float, help="length of the run, in place of --steps")
    parser.add_argument("--batch", type=int, default=Recipe.batch, help="images a step (default 256)")
    parser.add_argument("--size", type=int, default=Recipe.size, help="side of the images, in pixels (default 128)")
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate, help="the highest (default 0.01)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="default 0")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--judge", metavar="FILE", help="judge these weights on the photographs kept out, and end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
