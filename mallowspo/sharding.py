"""A training whose processes share out the policy, for one that no GPU holds alone: FSDP, by torch's `fully_shard`.

Each process holds its part of every weight, of the gradient and of the optimizer's state, cut along the first
dimension. A layer's weights are put together while it works, forward and backward, and let go; those outside the layers
(embedding, output head), from a forward to the end of its backward. A backward adds the gradients up over the processes
and leaves each its part. Weights and gradients are float32, here and on their way; products are in the training's
precision.

What is written is whole, so that a checkpoint knows no number of processes, nor whether they shared the policy out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_leaves, tree_map
from transformers.modeling_layers import GradientCheckpointingLayer

from mallowspo.errors import InputError
from mallowspo.scoring import Scorer
from mallowspo.trainer import PreferenceTrainer


class ShardedTrainer(PreferenceTrainer):
    """The trainer of a policy that is shared out once a checkpoint's weights have been read.

    Args:
        initial_policy: makes the policy as it was before the training, on a CPU.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *, initial_policy: Callable[[], Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.initial_policy = initial_policy
        self.whole_weights: Any = None
        self.whole_optimizer: Any = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        shard(self.scorer)
        return super().create_optimizer(*args, **kwargs)

    def add_up_gradients(self) -> None:
        """Each backward has done it."""

    def whole_policy(self) -> Any:
        weights = self._whole(trained_weights(self.scorer.model))
        if not self.processes.first:
            return None
        policy = self.initial_policy()
        policy.load_state_dict(weights, strict=False)  # what is frozen is there
        policy.config.use_cache = self.scorer.causal.config.use_cache  # which the Trainer sets
        return policy

    def _whole(self, state: Any) -> Any:
        """A state with its tensors put together, on the CPU of the first process; to be called in all of them."""

        def whole(value: Any) -> Any:
            value = value.full_tensor().detach() if isinstance(value, DTensor) else value
            if not self.processes.first:
                return None
            return value.cpu() if isinstance(value, Tensor) else value

        return tree_map(whole, state)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm: Any = super()._clip_grad_norm(model)
        return norm.full_tensor()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """The first process, which alone saves, says when."""
        if self.processes.from_first(lambda: self.control.should_save):
            self.whole_weights = self._whole(trained_weights(self.scorer.model))
            self.whole_optimizer = self._whole(self.optimizer.state_dict())
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.whole_weights = self.whole_optimizer = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, self.whole_weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        torch.save(self.whole_optimizer, Path(output_dir) / "optimizer.pt")
        torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        # Mapped, not read: each process needs its part alone.
        state = torch.load(Path(checkpoint) / "optimizer.pt", map_location="cpu", mmap=True, weights_only=True)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, values in state["state"].items():
            values |= {name: _part(value, parameters[number]) for name, value in values.items()}
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))


def shard(scorer: Scorer) -> None:
    """Leave this process its part of the policy. To be called in all of them, before there is an optimizer.

    Raises:
        InputError: the policy has no layers that could be put together one by one.
    """
    causal = scorer.causal
    scorer.tied = False  # the embeddings' weight is whole within the body's forward alone
    mesh = init_device_mesh(scorer.device.type, (dist.get_world_size(),))
    for module in [*layers(causal), causal]:
        fully_shard(module, mesh=mesh)
        # Sums over the processes, not means: the loss of a step is a mean over its pairs already.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    # The scorer calls the body and the head's weight apart: what goes before and after a forward of the whole policy
    # must go before and after the body's.
    causal.body_of_shards = lambda **inputs: causal.base_model(**inputs)
    register_fsdp_forward_method(causal, "body_of_shards")
    scorer.body = causal.body_of_shards


def layers(causal: Any) -> list[nn.Module]:
    """The layers of a policy, as transformers marks them.

    Raises:
        InputError: none is marked.
    """
    found: list[nn.Module] = [module for module in causal.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise InputError(f"compute.sharded: transformers marks no layers in {type(causal).__name__}; set it to false")
    return found


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """By name; a weight that is used twice once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def bytes_held(trainer: PreferenceTrainer) -> list[int]:
    """Bytes of weights and of the optimizer's state in each process; to be called in all of them."""
    optimizer: Any = trainer.optimizer
    values = [*trainer.scorer.model.parameters(), *tree_leaves(dict(optimizer.state))]
    own = [value.to_local() if isinstance(value, DTensor) else value for value in values]
    held = sum(value.untyped_storage().nbytes() for value in own if isinstance(value, Tensor))
    found: list[int] = trainer.processes.gather(torch.tensor([held], device=trainer.args.device)).tolist()
    return found


def _part(value: Any, parameter: Tensor) -> Any:
    """This process's part of a moment of a parameter; what has no dimensions is no moment."""
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.dim()):
        return value
    whole = value.to(parameter.device)
    # A copy, which does not hold the whole.
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None).clone()
