"""The one optimizer of the paper, SGD with momentum, over the raw kernels of weight-standardised convolutions.

A standardised kernel changes only when an optimizer step changes the raw one. So the network is given standardised
kernels as its parameters, and the optimizer keeps the raw ones: standardisation and its backward pass run once a step,
not once for each micro-batch and recomputation. That is exact: the backward pass of standardisation is linear in the
gradient, so that of the sum over micro-batches, or of the mean over ranks, is the sum or mean of theirs.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline.errors import ConfigError
from trainer.kernels import Conv2d, RowStatistics, standardize_gradient, standardize_into


@dataclass(frozen=True)
class _Master:
    """A parameter of the network and what SGD moves for it.

    Attributes:
        raw: This rank's part of the raw values; the parameter's own memory unless the network has a standardised copy.
        parameter: Of the network.
        conv: Whose kernel it is, if the network has a standardised copy.
    """

    raw: nn.Parameter
    parameter: nn.Parameter
    conv: Conv2d | None


class MasterSGD:
    """SGD with momentum, plain, not Nesterov; the learning rate is given at every step.

    Takes over the model: until `release`, its kernels are standardised ones, and `state` has the raw ones.

    Args:
        model: With raw kernels, in its final place: device, memory layout and shards.
        momentum: 0 to 1.
        weight_decay: Coupled L2 on kernels only (convolutions and head, not norms nor biases).
        decay_to_start: The same towards the values that the parameters have now, on all of them (L2-SP)
            [paper appendix A].
    """

    def __init__(self, model: nn.Module, momentum: float, weight_decay: float, *, decay_to_start: float = 0.0) -> None:
        self._model = model
        convs = {
            f"{name}.weight": module
            for name, module in model.named_modules()
            if isinstance(module, Conv2d) and module.standardized
        }
        self._masters: dict[str, _Master] = {}
        for name, parameter in model.named_parameters():
            local = _local(parameter)
            raw = nn.Parameter(local.clone() if name in convs else local)
            self._masters[name] = _Master(raw, parameter, convs.get(name))
        for conv in convs.values():
            conv.weight_is_raw = False
        raws = [master.raw for master in self._masters.values()]
        groups = [
            {"params": [raw for raw in raws if raw.ndim > 1], "weight_decay": weight_decay},
            {"params": [raw for raw in raws if raw.ndim <= 1], "weight_decay": 0.0},
        ]
        self._sgd = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
        for raw in raws:  # zeros are what SGD starts from; they stand ready to be filled from a checkpoint
            self._sgd.state[raw]["momentum_buffer"] = torch.zeros_like(raw)
        self._decay_to_start = decay_to_start
        self._statistics: dict[str, RowStatistics] = {}
        self._start = [raw.detach().clone() for raw in raws] if decay_to_start else []
        self.refresh()

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for master in self._masters.values():
            master.parameter.grad = master.raw.grad = None

    def gradient_norm(self) -> Tensor:
        """Turns the network's gradients into those of the raw values; gives their Euclidean norm over all ranks."""
        for name, master in self._masters.items():
            if master.parameter.grad is not None:
                gradient = _local(master.parameter.grad)
                if master.conv:
                    gradient = standardize_gradient(gradient, master.raw, self._statistics[name])
                master.raw.grad = gradient
                master.parameter.grad = None
        gradients = [master.raw.grad for master in self._masters.values() if master.raw.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if any(isinstance(master.parameter, DTensor) for master in self._masters.values()):
            square = norm.square()
            dist.all_reduce(square)
            norm = square.sqrt()
        return norm

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Takes one step along the gradients that `gradient_norm` has prepared."""
        for group in self._sgd.param_groups:
            group["lr"] = learning_rate
        for master, start in zip(self._masters.values(), self._start, strict=False):
            if master.raw.grad is not None:
                master.raw.grad.add_(master.raw - start, alpha=self._decay_to_start)
        self._sgd.step()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Gives the network the standardised kernels of the raw ones; for after a checkpoint has filled `state`."""
        for name, master in self._masters.items():
            if master.conv:
                self._statistics[name] = standardize_into(_local(master.parameter), master.raw)

    @torch.no_grad()
    def release(self) -> None:
        """Gives the raw kernels back to the network, which standardises them on use again."""
        for master in self._masters.values():
            if master.conv:
                _local(master.parameter).copy_(master.raw)
                master.conv.weight_is_raw = True

    def gradients(self) -> dict[str, Tensor]:
        """Gives the gradients by the raw parameters that `gradient_norm` has prepared, by name."""
        return {
            name: _like(master.parameter, master.raw.grad)
            for name, master in self._masters.items()
            if master.raw.grad is not None
        }

    def state(self) -> dict[str, Tensor]:
        """Gives raw parameters, buffers and momentum by name; the tensors are the optimizer's and the network's own."""
        state = {}
        for name, master in self._masters.items():
            state[f"model/{name}"] = _like(master.parameter, master.raw.detach())
            state[f"momentum/{name}"] = _like(master.parameter, self._sgd.state[master.raw]["momentum_buffer"])
        return state | {f"model/{name}": buffer for name, buffer in self._model.named_buffers()}


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Gives the raw parameters and the buffers by name, as MasterSGD.state does; the tensors are the model's own.

    Raises:
        ConfigError: An optimizer has the raw kernels.
    """
    for name, module in model.named_modules():
        if isinstance(module, Conv2d) and not module.weight_is_raw:
            raise ConfigError(f"the raw kernel of {name} is with the optimizer; take its state, or release the model")
    return {f"model/{name}": value for name, value in model.state_dict().items()}


def _local(tensor: Tensor) -> Tensor:
    """Gives this rank's part, sharing its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """Gives this rank's part as a tensor sharded as the parameter is."""
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
