"""The optimizer of the paper, SGD with momentum, and Adam beside it, with kernels standardised once a step.

A standardised kernel changes only when an optimizer step changes the raw one. So for the length of a step the network
is given ready kernels, standardised and in the precision of the step, and its raw ones, the masters, stay aside:
standardisation and its backward pass run once a step, not once for each micro-batch and recomputation. That is exact:
the backward pass of standardisation is linear in the gradient, so that of the sum over micro-batches, or of the mean
over ranks, is the sum or mean of theirs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from trainer.model.conv import Conv2d, RowStatistics, standardize_all, standardize_gradients, standardize_once

AVERAGE = "average/"  # of the names of averages in the state
_SECOND_BETA, _EPSILON = 0.999, 1e-8  # Kingma and Ba, 2015, section 2; the paper names none
# In the state of a run, and in torch's.
_MOMENTS = {"sgd": {"momentum": "momentum_buffer"}, "adam": {"momentum": "exp_avg", "second_moment": "exp_avg_sq"}}


class MasterOptimizer:
    """SGD with momentum, plain, not Nesterov, or Adam; the learning rate is given at every step.

    Args:
        model: In its final place: device, memory layout and shards.
        momentum: 0 to 1; of Adam the first beta.
        weight_decay: Coupled L2 on kernels only (convolutions and head, not norms nor biases).
        kind: `sgd` or `adam`.
        decoupled: Whether a step shrinks kernels by learning rate x weight decay itself, past the momentum (AdamW's).
        decay_to_start: The same towards the values that the parameters have now, on all of them (L2-SP)
            [paper appendix A].
        average_decay: Share of the moving average of the parameters that a step keeps; None for no average.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float,
        weight_decay: float,
        *,
        kind: Literal["sgd", "adam"] = "sgd",
        decoupled: bool = False,
        decay_to_start: float = 0.0,
        average_decay: float | None = None,
    ) -> None:
        self._model = model
        self._parameters = dict(model.named_parameters())
        # What a step moves: the parameters, or this rank's parts of them, in the same memory.
        self._raws = {name: _part(parameter) for name, parameter in self._parameters.items()}
        self._convs = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, Conv2d)}
        self._parts_are_large = _parts_are_large(model)
        self._statistics: dict[str, RowStatistics] = {}  # of the kernels that this step standardised
        self._standardize_all, self._standardize_gradients = standardize_all, standardize_gradients
        raws = list(self._raws.values())
        groups = [
            {"params": [raw for raw in raws if raw.ndim > 1], "weight_decay": 0.0 if decoupled else weight_decay},
            {"params": [raw for raw in raws if raw.ndim <= 1], "weight_decay": 0.0},
        ]
        self._mover: torch.optim.Optimizer
        if kind == "adam":
            self._mover = torch.optim.Adam(groups, lr=0.0, betas=(momentum, _SECOND_BETA), eps=_EPSILON, fused=True)
        else:
            self._mover = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
        self._moments = _MOMENTS[kind]
        for raw in raws:  # zeros are what both start from; they stand ready to be filled from a checkpoint
            for key in self._moments.values():
                self._mover.state[raw][key] = torch.zeros_like(raw)
            if kind == "adam":
                self._mover.state[raw]["step"] = torch.zeros((), device=raw.device)
        self._shrinkage = weight_decay if decoupled else 0.0
        self._norm = torch.zeros(())  # of the gradients that `gradient_norm` has prepared
        self._decay_to_start = decay_to_start
        self._start = [raw.detach().clone() for raw in raws] if decay_to_start else []
        self._average_decay = average_decay
        averaged = self._raws if average_decay is not None else {}
        self._averages = {name: raw.detach().clone() for name, raw in averaged.items()}

    def compile(self, **options: Any) -> None:
        """Let torch.compile make one region of all standardisations of a step, and one of those of all gradients.

        Args:
            options: Of torch.compile.
        """
        self._standardize_all = torch.compile(standardize_all, **options)
        self._standardize_gradients = torch.compile(standardize_gradients, **options)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._statistics.clear()
        for name, parameter in self._parameters.items():
            parameter.grad = self._raws[name].grad = None

    @contextmanager
    def kernels(self, dtype: torch.dtype | None = None) -> Iterator[None]:
        """Return the network its kernels for all forward and backward passes inside: one standardisation, one cast.

        A network that recomputes was asked to save memory: where all kernels would be there twice in full precision, it
        standardises them on use instead, one unit at a time.

        Args:
            dtype: Of the kernels; None for that of the parameters.
        """
        is_lean = getattr(self._model, "recomputes", False)

        def is_given(conv: Conv2d) -> bool:
            is_part = isinstance(conv.weight, DTensor)
            if is_lean and (self._parts_are_large if is_part else dtype is None):
                return False
            return conv.standardized or (dtype is not None and not is_part)

        convs = {name: conv for name, conv in self._convs.items() if is_given(conv)}
        aside: dict[str, Tensor] = {}
        try:
            wholes = [name for name, conv in convs.items() if not isinstance(conv.weight, DTensor)]
            self._standardize([name for name in wholes if convs[name].standardized], dtype)
            for name, conv in convs.items():
                if isinstance(conv.weight, DTensor):
                    if conv.standardized:
                        aside[name] = self._standardize_part(name, conv)
                elif not conv.standardized:
                    conv.use(conv.weight.detach().to(dtype or conv.weight.dtype))
            yield
        finally:
            for name, conv in convs.items():
                conv.kernel, conv.weight_is_raw = None, True
                if name in aside:
                    self._raws[name].data.copy_(aside[name])

    def drop_kernels(self) -> None:
        """Let go of the kernels after the last forward pass of a step: they go one by one as its backward pass ends.

        Where that recomputes, it needs them.
        """
        if not getattr(self._model, "recomputes", False):
            for conv in self._convs.values():
                conv.kernel = None

    def _standardize(self, names: list[str], dtype: torch.dtype | None) -> None:
        """Give convolutions their kernels."""
        found = self._standardize_all([self._raws[name] for name in names], dtype)
        for name, (kernel, statistics) in zip(names, found, strict=True):
            self._statistics[name] = statistics
            self._convs[name].use(kernel)

    def _standardize_part(self, name: str, conv: Conv2d) -> Tensor:
        """Standardise this rank's part of a kernel in its place, whence it is gathered; return the raw values."""
        part = self._raws[name].data
        raw = part.clone()
        kernel, self._statistics[name] = standardize_once(raw)
        part.copy_(kernel)
        conv.weight_is_raw = False
        return raw

    def gradient_norm(self) -> Tensor:
        """Turn the gradients of `kernels` into those of the raw values; return their Euclidean norm over all ranks."""
        gradients = {name: _local(one.grad) for name, one in self._parameters.items() if one.grad is not None}
        for parameter in self._parameters.values():
            parameter.grad = None
        names = [name for name in gradients if name in self._statistics]
        by_kernels = [gradients.pop(name) for name in names]
        raws: list[Tensor] = [self._raws[name] for name in names]
        self._standardize_gradients(by_kernels, raws, [self._statistics.pop(name) for name in names])
        for name, gradient in (gradients | dict(zip(names, by_kernels, strict=True))).items():
            self._raws[name].grad = gradient
        prepared = [raw.grad for raw in self._raws.values() if raw.grad is not None]
        norm = torch.nn.utils.get_total_norm(prepared)
        meshes = [parameter.device_mesh for parameter in self._parameters.values() if isinstance(parameter, DTensor)]
        if meshes:
            square = norm.square()
            dist.all_reduce(square)
            num_replicas = meshes[0].size() // meshes[0].size(meshes[0].ndim - 1)
            norm = (square / num_replicas).sqrt()
        self._norm = norm
        return norm

    @torch.no_grad()
    def step(self, learning_rate: float, *, only_if: Tensor, clip_norm: float | None = None) -> None:
        """Take one step along the gradients that `gradient_norm` has prepared.

        Args:
            learning_rate: Of this step.
            only_if: Truth on the device, which is asked there: if false, parameters and moments stay as they are.
            clip_norm: Norm to which a longer gradient is shortened; None for none.
        """
        if clip_norm is not None:
            gradients = tuple(raw.grad for raw in self._raws.values() if raw.grad is not None)
            torch._foreach_mul_(gradients, (clip_norm / self._norm).clamp(max=1.0))
        for group in self._mover.param_groups:
            group["lr"] = learning_rate
        for raw, start in zip(self._raws.values(), self._start, strict=False):
            if raw.grad is not None:
                raw.grad.add_(raw - start, alpha=self._decay_to_start)
        if self._shrinkage:
            kernels: list[Tensor] = [raw for raw in self._raws.values() if raw.ndim > 1]
            torch._foreach_mul_(kernels, 1.0 - learning_rate * self._shrinkage * only_if.float())
        # The fused kernel's own name for a step to leave out.
        self._mover.found_inf = only_if.logical_not().float()  # type: ignore[attr-defined]
        self._mover.step()
        if self._average_decay is not None:
            share = (1.0 - self._average_decay) * only_if.float()
            for name, average in self._averages.items():
                average.lerp_(self._raws[name], share)

    @torch.no_grad()
    def begin_averages(self) -> None:
        """Let the moving averages begin with the parameters as they are."""
        for name, average in self._averages.items():
            average.copy_(self._raws[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the network the averages of its parameters inside, where there are some."""
        with torch.no_grad():
            aside = {name: self._raws[name].detach().clone() for name in self._averages}
            for name, average in self._averages.items():
                self._raws[name].copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, raw in aside.items():
                    self._raws[name].copy_(raw)

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients by the raw parameters that `gradient_norm` has prepared, by name."""
        return {
            name: _like(self._parameters[name], raw.grad) for name, raw in self._raws.items() if raw.grad is not None
        }

    def state(self) -> dict[str, Tensor]:
        """Return raw parameters, their averages and moments, and buffers by name: the tensors themselves, no copies."""
        state = {}
        for name, raw in self._raws.items():
            state[f"model/{name}"] = _like(self._parameters[name], raw.detach())
            moving = self._mover.state[raw]
            for moment, key in self._moments.items():
                state[f"{moment}/{name}"] = _like(self._parameters[name], moving[key])
            if "step" in moving:
                state[f"num_steps/{name}"] = moving["step"]
        for name, average in self._averages.items():
            state[f"{AVERAGE}{name}"] = _like(self._parameters[name], average)
        return state | {f"model/{name}": buffer for name, buffer in self._model.named_buffers()}


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and the buffers by name, as MasterOptimizer.state does; the tensors are the model's own."""
    return {f"model/{name}": value for name, value in model.state_dict().items()}


def _parts_are_large(model: nn.Module) -> bool:
    """Return whether a rank's parts of all standardised kernels are more than the kernels of one unit as a whole.

    Every rank finds the same, also where the parts of the last one are smaller.
    """

    def kernels(module: nn.Module) -> list[Tensor]:
        return [each.weight for each in module.modules() if isinstance(each, Conv2d) and each.standardized]

    def part_size(kernel: Tensor) -> int:
        if not isinstance(kernel, DTensor):
            return kernel.numel()
        mesh = kernel.device_mesh
        return -(-kernel.shape[0] // mesh.size(mesh.ndim - 1)) * (kernel.numel() // kernel.shape[0])

    of_units = [
        sum(kernel.numel() for kernel in kernels(unit))
        for unit in model.modules()
        if isinstance(unit, FSDPModule) and unit is not model
    ]
    return sum(part_size(kernel) for kernel in kernels(model)) > max(of_units, default=0)


def _part(parameter: nn.Parameter) -> nn.Parameter:
    """Return the parameter, or this rank's part of it as one, in the same memory."""
    return nn.Parameter(_local(parameter)) if isinstance(parameter, DTensor) else parameter


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part, sharing its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """Return this rank's part as a tensor sharded as the parameter is."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
